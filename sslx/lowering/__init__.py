"""Exact forms of convolutions, chosen by a rule or by measurement."""

from sslx.lowering._choices import Choice as Choice
from sslx.lowering._choices import Choices as Choices
from sslx.lowering._conv import Columns as Columns
from sslx.lowering._conv import Conv as Conv
from sslx.lowering._forms.compute import run as run
from sslx.lowering._forms.form import XLA as XLA
from sslx.lowering._forms.form import Form as Form
from sslx.lowering._forms.form import applies as applies
from sslx.lowering._nonzero import nonzero_of as nonzero_of
from sslx.lowering._programs import option_sets as option_sets
from sslx.lowering._programs import program_seconds as program_seconds
from sslx.lowering._rule import candidates as candidates
from sslx.lowering._rule import rule as rule
from sslx.lowering._timings import Cache as Cache
from sslx.lowering._tune import Lowering as Lowering
from sslx.lowering._tune import Tuned as Tuned
from sslx.lowering._tune import tune as tune
