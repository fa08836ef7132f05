"""The DeepMimic humanoid: simulation, motions, experts."""
