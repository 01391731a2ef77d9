"""The Flower ServerApp: the round loop, resume, the phases of a run."""
