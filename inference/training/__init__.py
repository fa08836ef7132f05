"""The training loop: progress, checkpoints, results."""
