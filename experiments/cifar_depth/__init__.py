"""Layers that SSL removes from residual networks."""
