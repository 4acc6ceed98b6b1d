"""Direct convolution in machine code: from a plan in arrays to a JAX primitive."""
