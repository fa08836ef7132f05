"""Learning to act from rewards."""
