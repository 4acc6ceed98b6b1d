"""A program evaluated on its alive slices only."""
