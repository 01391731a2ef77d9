"""A Flower strategy around an algorithm.

Here is what any algorithm needs of Flower: whom to ask, what to send, and what outlives a round.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from engine.client_memory import Setup
from engine.transport import MEMORY, pack, pack_many, release, unpack
from fedta_app.algorithms import Accumulator, Algorithm, Reply, Total, Vectors
from fedta_app.runs.loop import check_keys, check_tensor, named_by_client
from fedta_app.vectors.arithmetic import blocks, stepped
from fedta_app.vectors.layout import Segment
from strategies.exchange import Exchange, too_few
from strategies.reading import WEIGHTS, Expand, ReplyReader
from strategies.reply_checks import Trained
from strategies.watcher import Watcher


class FederatedStrategy(Strategy):
    """Rounds of an algorithm: sample clients, send weights, combine replies, move the weights.

    It can run with Flower's own `Strategy.start`; fedta's loop calls the same hooks, with records
    and checkpoints between rounds. The arrays that it takes and returns are
    `pack(weights, MEMORY)` of `engine.transport`, for the vector of the weights that travel, (P,).

    Parameters
    ----------
    exchange : Exchange
    algorithm : Algorithm
    fraction_train : float
        C, the share of clients sampled per round.
    seed : int
        Of the sampling.
    learning_rate : callable
        The learning rate of a round, sent to its clients.
    local_steps, batch_size : callable, optional
        Those of a round, sent to its clients; else the configuration's.
    setup : callable
        What a client needs besides the vectors, by partition id.
    expand : callable
        Undoes the packing of a client's own mask, by partition id.
    size : callable
        How many entries a client trains, by partition id and the number of those that travel.
    holders : callable
        Counts the clients that train each entry, where they have masks of their own; else None.
    clients : callable, optional
        Returns who can be sampled, sorted; by default all clients.
    segments : callable
        Says which of the entries that travel belong to one tensor; by default they are of one.
    message_type : str
        Which handler of the ClientApp trains.
    min_clients_ok : int
        With fewer good replies a round does not count.
    most_examples, steps_of : callable
        Return how many examples a client has, and how many steps so many take (0: any number).
    accumulator : callable, optional
        Returns what the replies of a round are added to; by default the algorithm's.

    Attributes
    ----------
    state : mapping of str to Tensor
        What the algorithm keeps on the server.
    memories : dict from partition id to str
        Digests of what the algorithm keeps on clients, as of their last replies that counted.
    answered : list of int
        The clients whose replies counted in the last round.
    failed : int
        The last round in which too few did; 0 for none.
    watchers : list of Watcher
    """

    def __init__(
        self,
        exchange: Exchange,
        algorithm: Algorithm,
        *,
        fraction_train: float,
        seed: int,
        learning_rate: Callable[[int], float],
        local_steps: Callable[[int], int] | None = None,
        batch_size: Callable[[int], int] | None = None,
        setup: Callable[[int], Setup] = lambda partition_id: Setup(),
        expand: Expand = lambda partition_id, vector: (vector, None),
        size: Callable[[int, int], int] = lambda partition_id, travelling: travelling,
        holders: Callable[[], Tensor | None] = lambda: None,
        clients: Callable[[], Sequence[int] | None] = lambda: None,
        segments: Callable[[], tuple[Segment, ...]] = lambda: (),
        message_type: str = MessageType.TRAIN,
        min_clients_ok: int = 1,
        most_examples: Callable[[int], int] = lambda partition_id: 2**31,
        steps_of: Callable[[int], int] = lambda num_examples: 0,
        accumulator: Callable[[], Accumulator] | None = None,
    ) -> None:
        self.exchange, self.algorithm = exchange, algorithm
        self.fraction_train = fraction_train
        self.seed = seed
        self.learning_rate = learning_rate
        self._paced = {"lr": learning_rate, "local-steps": local_steps, "batch-size": batch_size}
        self.setup = setup
        self.message_type = message_type
        self.min_clients_ok = min_clients_ok
        self.accumulator = accumulator or algorithm.accumulator
        self._reader = ReplyReader(
            algorithm, learning_rate, expand, size, most_examples, steps_of, local_steps
        )
        self.watchers: list[Watcher] = []
        self.state: Vectors | None = None
        self.memories: dict[int, str] = {}
        self.memories_lost = self.failed = 0
        self.answered: list[int] = []
        self._kept: dict[int, set[str]] = {}
        self._holders = holders
        self._clients = clients
        self._find_segments = segments
        self._segments: tuple[Segment, ...] = ()
        self._sampled: list[int] = []
        self._loss, self._examples = 0.0, 0
        self._new_memories: dict[int, str] = {}
        self._sent: ArrayRecord = ArrayRecord()
        self._weights = self._next = torch.empty(0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each sampled client, in the order of their partition ids.

        After TooFewClientsError the same round asks other clients, as far as there are any.
        """
        others_than = self._sampled if self.failed == server_round else ()
        broadcast = self._begin(server_round, arrays)
        self._sampled = self._sample(server_round, others_than)
        vectors = {WEIGHTS: self._weights, **broadcast}
        self._sent = pack_many(vectors, self.exchange.transport)
        return self._messages(self._sampled, self._sent, server_round, config)

    def _sample(self, server_round: int, others_than: Collection[int]) -> list[int]:
        """Return the clients of a round, sorted; others than those, as far as there are any."""
        draw = (self.fraction_train, self.seed, self.message_type, server_round)
        return self.exchange.nodes.sample(*draw, among=self._clients(), others_than=others_than)

    def _begin(self, server_round: int, arrays: ArrayRecord) -> Vectors:
        """Take over the weights of a round, and return what is broadcast beside them."""
        if self.failed != server_round:  # the costs of a round that is repeated add up
            self.exchange.begin_round()
        self._weights = unpack(arrays, MEMORY)
        self._loss, self._examples, self.answered, self._new_memories = 0.0, 0, [], {}
        for watcher in self.watchers:
            watcher.begin()
        if self.state is None:
            self.state = self.algorithm.init(self._weights.numel(), self._holders())
        for name, vector in self.state.items():  # their length was not known when it was loaded
            check_tensor(vector, self._weights, f"entries of {name!r}")
        return self.algorithm.broadcast(self.state, server_round)

    def _messages(
        self,
        clients: Iterable[int],
        arrays: ArrayRecord | Callable[[int], ArrayRecord],
        server_round: int,
        config: ConfigRecord,
    ) -> list[Message]:
        return self.exchange.messages(
            clients,
            self.message_type,
            arrays=arrays,
            config={**config, **self._settings(server_round)},  # type: ignore[dict-item]
            setup=self._setup,
        )

    def _settings(self, server_round: int) -> dict[str, Any]:
        """Return what the clients of a round are told besides the vectors."""
        paced = {name: of(server_round) for name, of in self._paced.items() if of is not None}
        return {"server-round": server_round, **paced}

    def _setup(self, partition_id: int) -> Setup:
        memory = self.memories.get(partition_id, "")
        kept = tuple(sorted(self._kept.get(partition_id, set()) | ({memory} - {""})))
        return replace(self.setup(partition_id), memory=memory, kept=kept)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Return the new weights and the mean training loss of the clients that answered.

        The record holds the weights until the next call.

        Raises
        ------
        TooFewClientsError
            When fewer than `min_clients_ok` replies were good: no weights or memories changed.
        RunError
            When that is because training diverged.
        """
        combined = self.accumulator()
        for _, reply in self._good(self._sampled, replies, server_round):
            combined.add(reply)
        release(self._sent, self.exchange.transport)
        return self._finish(combined, server_round)

    def _good(
        self, clients: list[int], replies: Iterable[Message], server_round: int
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the good replies of clients in their order, and note what outlives the round."""
        said: dict[int, Trained] = {}

        def check(client: int, message: Message, vectors: Vectors) -> None:
            said[client] = self._reader.check(client, message, vectors, self._weights, server_round)

        for partition_id, message, vectors in self.exchange.in_order(clients, replies, check):
            reply = self._reader.read(partition_id, said[partition_id], vectors, server_round)
            yield partition_id, reply
            self.answered.append(partition_id)
            for watcher in self.watchers:
                watcher.watch(partition_id, reply.update, reply.trained)
            self.exchange.remember(partition_id, self.setup(partition_id))
            if kept := message.content.config_records.get("memory"):
                self._new_memories[partition_id] = str(kept["digest"])
            self._loss += reply.num_examples * said[partition_id].loss
            self._examples += reply.num_examples

    def _finish(self, combined: Accumulator, server_round: int) -> tuple[ArrayRecord, MetricRecord]:
        """Return the weights after the algorithm's step, and the mean loss of the round."""
        lost = self.exchange.costs.memory_lost
        while lost:  # emptied, because the costs of a round that is repeated add up
            self.memories.pop(lost.pop(), None)
            self.memories_lost += 1
        if (good := len(self.answered)) < self.min_clients_ok:
            self.failed = server_round
            raise too_few(self.exchange.costs, good, self.min_clients_ok, server_round)
        self.memories.update(self._new_memories)
        total = self._at_the_start(self._total(combined, server_round))
        state = {name: vector.to(total.mean.device) for name, vector in (self.state or {}).items()}
        move, self.state = self.algorithm.step(state, total, server_round)
        new = self._moved(move.direction, move.scale)
        metrics = MetricRecord()
        if self._examples:
            metrics["train-loss"] = self._loss / self._examples
        return pack(new, MEMORY), metrics

    def _total(self, combined: Accumulator, server_round: int) -> Total:
        """Return the combined replies of a round."""
        return combined.result()

    def _at_the_start(self, total: Total) -> Total:
        """Add the weights that the round started from, and which of them are of one tensor."""
        if not self._segments:
            whole = Segment(self._weights.numel(), dims=2)
            self._segments = self._find_segments() or (whole,)
        return total._replace(start=self._weights, segments=self._segments)

    def _moved(self, direction: Tensor, scale: float) -> Tensor:
        """Return weights + scale * direction, in memory that the next call uses again."""
        old = self._weights
        if self._next.shape != old.shape:
            self._next = torch.empty_like(old)
        for new, before, change in blocks(self._next, old, direction.to(old.device)):
            new.copy_(stepped(before, change, scale))
        return self._next

    def state_dict(self) -> dict[str, Any]:
        """Return the algorithm's state on the server, and the digests of that on clients."""
        return {
            "state": dict(self.state) if self.state is not None else None,
            "memories": {str(pid): digest for pid, digest in sorted(self.memories.items())},
            "memories-lost": self.memories_lost,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        check_keys(state, ("state", "memories", "memories-lost"), "algorithm")
        self.state = None if state["state"] is None else dict(state["state"])
        self.memories = named_by_client(state["memories"], str)
        self.memories_lost = int(state["memories-lost"])

    def keep_memories(self, named: Mapping[int, set[str]]) -> None:
        """Let clients forget all memories but these, which checkpoints name, and their newest."""
        self._kept = {pid: set(digests) for pid, digests in named.items()}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the server measures on its own validation and test images."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Return nothing: nobody was asked."""

    def summary(self) -> None:
        """Print how clients are sampled and combined."""
        name, clients = type(self.algorithm).__name__, len(self.exchange.nodes)
        print(f"{name}: {self.fraction_train:g} of {clients} clients a round")
