"""Flower strategies: which clients, what they are sent, how replies are combined."""

from strategies.exchange import Exchange
from strategies.federated import (
    FedAvg,
    FederatedStrategy,
    MaskedFedAvg,
    TaskArithmetic,
    TiesFedAvg,
)
from strategies.nodes import Nodes, discover_nodes

__all__ = [
    "Exchange",
    "FedAvg",
    "FederatedStrategy",
    "MaskedFedAvg",
    "Nodes",
    "TaskArithmetic",
    "TiesFedAvg",
    "discover_nodes",
]
