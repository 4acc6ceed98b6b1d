"""Structured sparsity for JAX that ends in smaller, faster dense networks."""

__version__ = "0.1.0"
