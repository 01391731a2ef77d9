"""FedAvg on updates, clients sampled by partition id, replies aggregated as they come.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, arXiv 1602.05629, Algorithm 1; with updates in place of models, so that a weight
nobody changed keeps its bits.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from engine.records import number, whole
from engine.transport import pack, payload_bytes, unpack
from fedta_app.accumulators import MeanAccumulator
from fedta_app.run_directory import RunError
from strategies.nodes import Nodes


@dataclass
class RoundCosts:
    """What a round moved, and who answered."""

    bytes_down: int = 0
    bytes_up: int = 0
    clients_ok: int = 0
    errors: list[str] = field(default_factory=list)


class FedAvg(Strategy):
    """Weighted mean of client updates: x <- x + sum_k (n_k / n) (x_k - x).

    Parameters
    ----------
    nodes : Nodes
        The federation.
    fraction_train : float
        C, the share of clients sampled per round.
    seed : int
        Of the sampling.
    learning_rate : callable
        The learning rate of a round, sent to its clients.

    Notes
    -----
    `aggregate_train` returns the mean *update*, not weights: the round loop applies it.
    """

    def __init__(
        self,
        nodes: Nodes,
        *,
        fraction_train: float,
        seed: int,
        learning_rate: Callable[[int], float],
    ) -> None:
        self.nodes = nodes
        self.fraction_train = fraction_train
        self.seed = seed
        self.learning_rate = learning_rate
        self.costs = RoundCosts()
        self._sampled: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each sampled client, in the order of their partition ids."""
        self._sampled = self.nodes.sample(self.fraction_train, self.seed, server_round)
        self.costs = RoundCosts(bytes_down=payload_bytes(arrays) * len(self._sampled))
        task = ConfigRecord(
            {**config, "server-round": server_round, "lr": self.learning_rate(server_round)}
        )
        content = RecordDict({"arrays": arrays, "config": task})
        return [
            Message(
                content,
                self.nodes.by_partition[partition_id],
                MessageType.TRAIN,
                group_id=str(server_round),
            )
            for partition_id in self._sampled
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Return the mean update and the mean training loss of the clients that answered.

        Raises
        ------
        RunError
            When no client did.
        """
        mean = MeanAccumulator()
        loss = 0.0
        examples = 0
        for reply in self._in_order(replies):
            if reply.has_error():
                self.costs.errors.append(reply.error.reason or "no reason given")
                continue
            arrays = reply.content.array_records["arrays"]
            metrics = reply.content.metric_records["metrics"]
            weight = whole(metrics, "num-examples")
            mean.add({"vector": unpack(arrays)}, weight)
            loss += weight * number(metrics, "train-loss")
            examples += weight
            self.costs.clients_ok += 1
            self.costs.bytes_up += payload_bytes(arrays)
        if not examples:
            reason = self.costs.errors[0] if self.costs.errors else "no client answered in time"
            raise RunError(f"no client finished round {server_round}: {reason}")
        update = pack(mean.result()["vector"], arrays["vector"].stype)
        return update, MetricRecord({"train-loss": loss / examples})

    def _in_order(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield replies in the order of the sample, each as soon as those before it came.

        Floating-point sums depend on their order; this one does not depend on who was fastest.
        """
        waiting = [self.nodes.by_partition[partition_id] for partition_id in self._sampled]
        early: dict[int, Message] = {}
        for reply in replies:
            early[reply.metadata.src_node_id] = reply
            while waiting and waiting[0] in early:
                yield early.pop(waiting.pop(0))
        for node_id in waiting:
            if node_id in early:
                yield early.pop(node_id)
            else:
                self.costs.errors.append(f"node {node_id} did not answer in time")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the server measures on its own validation and test images."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Nothing was asked."""

    def summary(self) -> None:
        """Print how clients are sampled and combined."""
        print(
            f"{type(self).__name__}: {self.fraction_train:g} of {len(self.nodes)} clients a round"
        )
