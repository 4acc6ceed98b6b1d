"""Compaction: analysis, plan, reduced evaluation, files."""

from sslx._compact._compact import Compact as Compact
from sslx._compact._compact import compact as compact
from sslx._compact._compact import compact_in_place as compact_in_place
from sslx._compact._files import load as load
from sslx._compact._files import save as save
from sslx._compact._plan import LeafPlan as LeafPlan
from sslx._compact._plan import Plan as Plan
from sslx._compact._plan import apply_plan as apply_plan
from sslx._compact._units import units as units
