"""Single questions that no table answers."""
