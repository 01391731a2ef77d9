"""Flower strategies, and the exchange of messages with clients by partition id."""

from strategies.exchange import Exchange
from strategies.federated import FederatedStrategy
from strategies.named import FedAvg, MaskedFedAvg, TaskArithmetic, TiesFedAvg
from strategies.nodes import Nodes, discover_nodes, welcome_back
from strategies.sequential import SequentialStrategy

__all__ = [
    "Exchange",
    "FedAvg",
    "FederatedStrategy",
    "MaskedFedAvg",
    "Nodes",
    "SequentialStrategy",
    "TaskArithmetic",
    "TiesFedAvg",
    "discover_nodes",
    "welcome_back",
]
