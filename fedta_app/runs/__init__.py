"""A run and its files: round loop, directory, checkpoints, metrics and provenance."""
