"""Planning on the true simulator, as a teacher."""
