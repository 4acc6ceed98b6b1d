"""Groups of weights: structures, norms and scale, penalties, proximal steps."""
