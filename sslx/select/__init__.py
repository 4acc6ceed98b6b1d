"""Which groups to keep: scores, choices under densities and budgets, sensitivity."""

from sslx.select._budgets import within_budget as within_budget
from sslx.select._keep import Costs as Costs
from sslx.select._keep import Density as Density
from sslx.select._keep import Masks as Masks
from sslx.select._keep import bytes_of as bytes_of
from sslx.select._keep import keep as keep
from sslx.select._keep import macs_of as macs_of
from sslx.select._keep import n_of_m as n_of_m
from sslx.select._prune import PruneState as PruneState
from sslx.select._prune import prune as prune
from sslx.select._schedules import one_cycle as one_cycle
from sslx.select._scores import Scores as Scores
from sslx.select._scores import fisher as fisher
from sslx.select._scores import geometric_median as geometric_median
from sslx.select._scores import lamp as lamp
from sslx.select._scores import only as only
from sslx.select._scores import random as random
from sslx.select._scores import sum_abs as sum_abs
from sslx.select._scores import taylor as taylor
from sslx.select._sensitivity import Sensitivity as Sensitivity
from sslx.select._sensitivity import sensitivity as sensitivity
