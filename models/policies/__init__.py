"""Policies: what acts, and learns to by imitation."""
