"""A traced call as a program, its variables, and masks of their slices."""
