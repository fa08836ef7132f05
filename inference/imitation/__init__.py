"""Learning from a teacher, and measures of how well it went."""
