"""The jaxpr engine: programs, the relations of primitives, liveness, rewriting."""

from sslx.graph import _elementwise as _elementwise
from sslx.graph import _linear as _linear
from sslx.graph import _rules as _rules
from sslx.graph._carriers import Part as Part
from sslx.graph._constants import require as require_constants
from sslx.graph._line_up import line_up as line_up
from sslx.graph._liveness import Facts as Facts
from sslx.graph._liveness import Liveness as Liveness
from sslx.graph._liveness import full as full
from sslx.graph._masks import either as either
from sslx.graph._masks import is_region as is_region
from sslx.graph._masks import sizes_of as sizes_of
from sslx.graph._masks import within as within
from sslx.graph._program import Equation as Equation
from sslx.graph._program import Program as Program
from sslx.graph._program import Value as Value
from sslx.graph._program import build as build
from sslx.graph._program import evaluate_dense as evaluate_dense
from sslx.graph._program import trace as trace
from sslx.graph._relation import Masks as Masks
from sslx.graph._report import Held as Held
from sslx.graph._report import KeptZeros as KeptZeros
from sslx.graph._report import held_back as held_back
from sslx.graph._report import kept_zeros as kept_zeros
from sslx.graph._rewrite import Rewriter as Rewriter
from sslx.graph._round import Widths as Widths
from sslx.graph._round import round_up as round_up
from sslx.graph._settle import MACS_PER_MOVE as MACS_PER_MOVE
from sslx.graph._settle import Alignment as Alignment
from sslx.graph._settle import settle as settle
from sslx.graph._units import Family as Family
from sslx.graph._units import families as families

__all__ = ["require_constants"]
