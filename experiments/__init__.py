"""Experiments: presets per table, the runner, and what is made of their results."""
