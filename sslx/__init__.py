"""Structured sparsity for JAX that ends in smaller, faster dense networks."""

from sslx import measure as measure
from sslx import psp as psp
from sslx import select as select
from sslx._compact import Compact as Compact
from sslx._compact import LeafPlan as LeafPlan
from sslx._compact import Plan as Plan
from sslx._compact import apply_plan as apply_plan
from sslx._compact import compact as compact
from sslx._compact import load as load
from sslx._compact import save as save
from sslx._groups import BLOCK as BLOCK
from sslx._groups import CHANNEL as CHANNEL
from sslx._groups import FILTER as FILTER
from sslx._groups import KERNEL as KERNEL
from sslx._groups import LAYER as LAYER
from sslx._groups import SHAPE as SHAPE
from sslx._groups import VECTOR as VECTOR
from sslx._groups import WEIGHT as WEIGHT
from sslx._groups import GroupClass as GroupClass
from sslx._groups import Groups as Groups
from sslx._groups import Member as Member
from sslx._groups import Structure as Structure
from sslx._groups import Structures as Structures
from sslx._groups import alive as alive
from sslx._groups import coupled as coupled
from sslx._groups import groups as groups
from sslx._groups import norms as norms
from sslx._groups import scale as scale
from sslx._penalties import GroupElastic as GroupElastic
from sslx._penalties import GroupHalf as GroupHalf
from sslx._penalties import GroupL0 as GroupL0
from sslx._penalties import GroupLasso as GroupLasso
from sslx._penalties import GroupMCP as GroupMCP
from sslx._penalties import GroupSCAD as GroupSCAD
from sslx._penalties import Penalty as Penalty
from sslx._penalties import SparseGroupLasso as SparseGroupLasso
from sslx._prox import Overlap as Overlap
from sslx._prox import penalty_value as penalty_value
from sslx._prox import prox as prox
from sslx._transforms import ProximalState as ProximalState
from sslx._transforms import keep_zeros as keep_zeros
from sslx._transforms import proximal as proximal
from sslx._transforms import subgradient as subgradient
from sslx._transforms import zero_threshold as zero_threshold

__version__ = "0.1.0"
