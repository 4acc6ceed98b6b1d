"""Figures of how a sparse network was made, and one self-contained HTML page.

Every figure is drawn from plain records (dicts, arrays), so that it can be drawn again
from a run folder without the network. Needs the extra `sslx[report]`.
"""

from sslx.report import style as style
from sslx.report._flow import flow as flow
from sslx.report._overview import overview as overview
from sslx.report._page import Fact as Fact
from sslx.report._page import Section as Section
from sslx.report._page import page as page
from sslx.report._speed import Mark as Mark
from sslx.report._speed import latency as latency
from sslx.report._speed import rates as rates
from sslx.report._speed import ratios as ratios
from sslx.report._training import group_norms as group_norms
from sslx.report._training import learning_curves as learning_curves
from sslx.report._training import norms_over_steps as norms_over_steps
from sslx.report._training import sensitivity as sensitivity
from sslx.report._training import sweep as sweep
from sslx.report._training import tradeoff as tradeoff
from sslx.report.style import save_png as save_png
