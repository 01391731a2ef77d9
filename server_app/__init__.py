"""The Flower ServerApp: the phases of a federated run, and the state that they change."""
