"""Forms of every primitive that has a rule: one file per file of rules.

An operand is a shape, to be filled at random, or an array, used as it is.
"""

from tests.rules.cases import (
    elementwise,
    indexing,
    layout,
    products,
    reductions,
    sources,
)
from tests.rules.cases.forms import PRIMITIVES as PRIMITIVES
from tests.rules.cases.forms import Form as Form

FILES = {
    "elementwise": elementwise.CASES,
    "indexing": indexing.CASES,
    "layout": layout.CASES,
    "products": products.CASES,
    "reductions": reductions.CASES,
    "sources": sources.CASES,
}
CASES = {name: forms for cases in FILES.values() for name, forms in cases.items()}
