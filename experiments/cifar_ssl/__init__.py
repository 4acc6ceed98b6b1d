"""The main study: train, sparsify with SSL, compact, fine-tune, benchmark, report."""
