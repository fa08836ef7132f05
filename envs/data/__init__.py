"""Demonstrations: in memory, on disk, from what others keep them in."""
