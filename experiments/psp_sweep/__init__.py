"""Error against sparsity for PSP and l1-norm pruning."""
