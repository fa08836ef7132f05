"""Control programs: procedures run by a call stack."""
