"""FedAvg on updates, and its variants that differ in how updates are combined.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, Algorithm 1; with updates in place of models, so that a weight
nobody changed keeps its bits.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from engine.records import number, whole
from engine.transport import MEMORY, pack, unpack
from fedta_app.aggregation.accumulators import (
    MaskedMeanAccumulator,
    MeanAccumulator,
    SignElectedMeanAccumulator,
)
from fedta_app.client_memory import Setup
from fedta_app.errors import RunError
from strategies.exchange import Exchange

# A client's reply as a vector over the weights that travel, and which of them the client trained
# (None: all).
Expand = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]


class Accumulator(Protocol):
    """What replies are added to, one at a time."""

    def add(self, update: dict[str, Tensor], weight: float) -> None:
        """Take one client's update."""

    def result(self) -> dict[str, Tensor]:
        """Hand over the combined update."""


class FedAvg(Strategy):
    """Weighted mean of client updates: x <- x + sum_k (n_k / n) (x_k - x).

    Parameters
    ----------
    exchange : Exchange
    fraction_train : float
        C, the share of clients sampled per round.
    seed : int
        Of the sampling.
    learning_rate : callable
        The learning rate of a round, sent to its clients.
    setup : callable
        What a client needs besides the vector, by partition id.
    expand : callable
        Undoes the packing of a client's own mask, by partition id.
    message_type : str
        Which handler of the ClientApp trains.

    Notes
    -----
    `aggregate_train` returns the combined *update*, not weights: the round loop applies it.

    A strategy keeps nothing from one round to the next: a checkpoint would not have it.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        fraction_train: float,
        seed: int,
        learning_rate: Callable[[int], float],
        setup: Callable[[int], Setup] = lambda partition_id: Setup(),
        expand: Expand = lambda partition_id, vector: (vector, None),
        message_type: str = MessageType.TRAIN,
    ) -> None:
        self.exchange = exchange
        self.fraction_train = fraction_train
        self.seed = seed
        self.learning_rate = learning_rate
        self.setup = setup
        self.expand = expand
        self.message_type = message_type
        self.watch: Callable[[int, Tensor, Tensor | None], None] | None = None
        self._sampled: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each sampled client, in the order of their partition ids."""
        self.exchange.begin_round()
        nodes = self.exchange.nodes
        self._sampled = nodes.sample(
            self.fraction_train, self.seed, self.message_type, server_round
        )
        task = {"server-round": server_round, "lr": self.learning_rate(server_round)}
        return self.exchange.messages(
            self._sampled, self.message_type, arrays=arrays, config=task, setup=self.setup
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Return the combined update and the mean training loss of the clients that answered.

        Raises
        ------
        RunError
            When no client did.
        """
        combined = self._accumulator()
        loss = 0.0
        examples = 0
        for partition_id, reply in self.exchange.in_order(self._sampled, replies):
            arrays = reply.content.array_records["arrays"]
            metrics = reply.content.metric_records["metrics"]
            weight = whole(metrics, "num-examples")
            update, trained = self.expand(partition_id, unpack(arrays))
            self._add(combined, update, weight, trained)
            if self.watch is not None:
                self.watch(partition_id, update, trained)
            self.exchange.remember(partition_id, self.setup(partition_id))
            loss += weight * number(metrics, "train-loss")
            examples += weight
        if not examples:
            errors = self.exchange.costs.errors
            raise RunError(f"no client finished round {server_round}: {errors[0]}")
        result = pack(combined.result()["vector"], MEMORY)  # it stays in this process
        return result, MetricRecord({"train-loss": loss / examples})

    def scale(self) -> float:
        """Return the factor that the round loop applies the last update with."""
        return 1.0

    def _accumulator(self) -> Accumulator:
        return MeanAccumulator()

    def _add(
        self, combined: Accumulator, update: Tensor, weight: int, trained: Tensor | None
    ) -> None:
        combined.add({"vector": update}, weight)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the server measures on its own validation and test images."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Print how clients are sampled and combined."""
        clients = len(self.exchange.nodes)
        print(f"{type(self).__name__}: {self.fraction_train:g} of {clients} clients a round")


class MaskedFedAvg(FedAvg):
    """Weighted mean, per weight, over the clients that trained it.

    With one mask for all clients this is FedAvg on the trained weights. With a mask per client the
    sum over those who trained weight j is divided by c_j^g W^(1-g), for c_j the weight of those
    who trained it, W that of everybody and g the coverage exponent: see
    `fedta_app.aggregation.accumulators.MaskedMeanAccumulator`.

    Parameters
    ----------
    coverage_exponent : float
        g: 1 divides by those who trained the weight, 0 by everybody.
    **options
        Those of `FedAvg`.
    """

    def __init__(self, exchange: Exchange, *, coverage_exponent: float, **options: object) -> None:
        super().__init__(exchange, **options)  # type: ignore[arg-type]
        self.coverage_exponent = coverage_exponent

    def _accumulator(self) -> Accumulator:
        return MaskedMeanAccumulator(self.coverage_exponent)

    def _add(
        self, combined: Accumulator, update: Tensor, weight: int, trained: Tensor | None
    ) -> None:
        _add_masked(combined, update, weight, trained)


class TiesFedAvg(FedAvg):
    """Sign election: per weight, the mean over the clients that agree with the elected sign.

    TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708), without its trimming, which the
    masks do: see `fedta_app.aggregation.accumulators.SignElectedMeanAccumulator`.
    """

    def _accumulator(self) -> Accumulator:
        return SignElectedMeanAccumulator()

    def _add(
        self, combined: Accumulator, update: Tensor, weight: int, trained: Tensor | None
    ) -> None:
        _add_masked(combined, update, weight, trained)


class TaskArithmetic(FedAvg):
    """Scaled sum of the clients' task vectors: x <- x + a * sum_k (x_k - x).

    Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089. With
    a = 1 / (clients of the round) it is the unweighted mean (Tao et al., TMLR 2025).

    Parameters
    ----------
    server_scale : float
        a.
    **options
        Those of `FedAvg`.
    """

    def __init__(self, exchange: Exchange, *, server_scale: float, **options: object) -> None:
        super().__init__(exchange, **options)  # type: ignore[arg-type]
        self.server_scale = server_scale

    def scale(self) -> float:
        """Return a times the number of task vectors, of which the update is the mean."""
        return self.server_scale * self.exchange.costs.clients_ok

    def _add(
        self, combined: Accumulator, update: Tensor, weight: int, trained: Tensor | None
    ) -> None:
        combined.add({"vector": update}, 1)


def _add_masked(combined: Accumulator, update: Tensor, weight: int, trained: Tensor | None) -> None:
    assert isinstance(combined, MaskedMeanAccumulator | SignElectedMeanAccumulator)
    combined.add({"vector": update}, weight, None if trained is None else {"vector": trained})
