"""Flower strategies: which clients, what they are sent, how replies are combined."""

from strategies.fedavg import FedAvg
from strategies.nodes import Nodes

__all__ = ["FedAvg", "Nodes"]
