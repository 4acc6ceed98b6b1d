"""What a function costs on paper, `cost`, and on this machine, `latency`."""

from sslx.measure._cost import Cost as Cost
from sslx.measure._cost import LayerCost as LayerCost
from sslx.measure._cost import cost as cost
from sslx.measure._latency import Latencies as Latencies
from sslx.measure._latency import Latency as Latency
from sslx.measure._latency import latency as latency
