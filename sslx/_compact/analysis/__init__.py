"""Which slices of every value are zero, constant or needed, until nothing changes.

Importing the package tells the analysis of equations that hold programs.
"""

from sslx._compact.analysis import control_flow as control_flow
