"""Storage, memory references and speed by grain, at the shapes of ImageNet networks."""
