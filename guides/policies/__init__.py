"""Policies over continuous actions, the guides of a model of optimality, and hierarchies of them."""
