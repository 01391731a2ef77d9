"""Transports for arrays, and an engine that runs the app in one process."""
