"""How the grain of sparsity trades accuracy for storage and memory references."""
