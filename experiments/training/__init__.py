"""One training loop for every study: steps, checkpoints, metrics, run folders."""
