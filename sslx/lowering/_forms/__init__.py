"""Exact ways to compute one convolution."""
