"""ELBOs, bounds and exact likelihoods."""
