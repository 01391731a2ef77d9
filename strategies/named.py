"""Strategies by the names of their algorithms, as an app of Flower would import them."""

from typing import Any

from fedta_app import algorithms
from strategies.exchange import Exchange
from strategies.federated import FederatedStrategy


class FedAvg(FederatedStrategy):
    """The mean of the updates over everybody: `fedta_app.algorithms.fedavg.FedAvg`."""

    def __init__(self, exchange: Exchange, **options: Any) -> None:
        super().__init__(exchange, algorithms.make_algorithm("fedavg", {}), **options)


class MaskedFedAvg(FederatedStrategy):
    """The mean over those who trained an entry: `fedta_app.algorithms.fedavg.MaskedFedAvg`."""

    def __init__(
        self, exchange: Exchange, *, coverage_exponent: float = 1.0, **options: Any
    ) -> None:
        fields = {"coverage_exponent": coverage_exponent}
        super().__init__(exchange, algorithms.make_algorithm("masked-fedavg", fields), **options)


class TiesFedAvg(FederatedStrategy):
    """Sign election: `fedta_app.algorithms.fedavg.Ties`."""

    def __init__(self, exchange: Exchange, **options: Any) -> None:
        super().__init__(exchange, algorithms.make_algorithm("ties", {}), **options)


class TaskArithmetic(FederatedStrategy):
    """Scaled sum of task vectors: `fedta_app.algorithms.fedavg.TaskArithmetic`."""

    def __init__(self, exchange: Exchange, *, server_scale: float = 1.0, **options: Any) -> None:
        fields = {"server_scale": server_scale}
        super().__init__(exchange, algorithms.make_algorithm("task-arithmetic", fields), **options)
