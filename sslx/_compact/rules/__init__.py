"""The rules: how the slices of operands and results are related, by primitive.

Importing the package registers them all.
"""

from sslx._compact.rules import elementwise as elementwise
from sslx._compact.rules import indexing as indexing
from sslx._compact.rules import layout as layout
from sslx._compact.rules import products as products
from sslx._compact.rules import reductions as reductions
from sslx._compact.rules import sources as sources
