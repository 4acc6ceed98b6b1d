"""What a function costs on paper, `cost`, and on this machine, `latency`.

And what a sparse tensor costs: bits in `storage`, `references` to memory.
"""

from sslx.measure._cost import Cost as Cost
from sslx.measure._cost import LayerCost as LayerCost
from sslx.measure._cost import cost as cost
from sslx.measure._latency import Latencies as Latencies
from sslx.measure._latency import Latency as Latency
from sslx.measure._latency import latency as latency
from sslx.measure._references import Dataflow as Dataflow
from sslx.measure._references import References as References
from sslx.measure._references import references as references
from sslx.measure._storage import Encoded as Encoded
from sslx.measure._storage import Storage as Storage
from sslx.measure._storage import encode as encode
from sslx.measure._storage import storage as storage
