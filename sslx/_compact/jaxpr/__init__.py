"""A traced call as a program of our own, its variables, and masks of slices."""
