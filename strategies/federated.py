"""A Flower strategy around an algorithm.

`fedta_app.algorithms` holds the algorithms; here is what any of them needs of Flower: whom to ask,
what to send, the order of the replies, and what has to outlive a round.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from engine.client_memory import Setup
from engine.transport import MEMORY, pack, pack_many, release, unpack
from fedta_app.algorithms import Algorithm, Reply, Total, Vectors
from fedta_app.errors import RunError
from fedta_app.runs.directory import DIVERGED
from fedta_app.runs.loop import check_keys
from fedta_app.vectors.arithmetic import blocks, stepped
from fedta_app.vectors.layout import Segment
from strategies.exchange import Exchange
from strategies.reply_checks import (
    ReplyError,
    TooFewClientsError,
    Trained,
    check_training,
    check_vectors,
)
from strategies.watcher import Watcher

# A client's reply as a vector over the weights that travel, and which of them the client trained
# (None: all).
Expand = Callable[[int, Tensor], tuple[Tensor, Tensor | None]]
_WEIGHTS = "vector"
_SHA256 = re.compile("[0-9a-f]{64}")


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
    setup : callable
        What a client needs besides the vectors, by partition id.
    expand : callable
        Undoes the packing of a client's own mask, by partition id.
    size : callable
        How many entries a client trains, by partition id and the number of those that travel.
    holders : callable
        Counts the clients that train each entry, where they have masks of their own; else None.
    segments : callable
        Says which of the entries that travel belong to one tensor; by default they are of one.
    message_type : str
        Which handler of the ClientApp trains.
    min_clients_ok : int
        With fewer good replies a round does not count.
    most_examples, most_steps : int
        No client has more examples, or takes more steps in a round.

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
        They see every update that is added.
    """

    def __init__(
        self,
        exchange: Exchange,
        algorithm: Algorithm,
        *,
        fraction_train: float,
        seed: int,
        learning_rate: Callable[[int], float],
        setup: Callable[[int], Setup] = lambda partition_id: Setup(),
        expand: Expand = lambda partition_id, vector: (vector, None),
        size: Callable[[int, int], int] = lambda partition_id, travelling: travelling,
        holders: Callable[[], Tensor | None] = lambda: None,
        segments: Callable[[], tuple[Segment, ...]] = lambda: (),
        message_type: str = MessageType.TRAIN,
        min_clients_ok: int = 1,
        most_examples: int = 2**31,
        most_steps: int = 2**31,
    ) -> None:
        self.exchange = exchange
        self.algorithm = algorithm
        self.fraction_train = fraction_train
        self.seed = seed
        self.learning_rate = learning_rate
        self.setup = setup
        self.expand = expand
        self.size = size
        self.message_type = message_type
        self.min_clients_ok = min_clients_ok
        self._most = {"most_examples": most_examples, "most_steps": most_steps}
        self.watchers: list[Watcher] = []
        self.state: Vectors | None = None
        self.memories: dict[int, str] = {}
        self.memories_lost = 0
        self.answered: list[int] = []
        self.failed = 0
        self._kept: dict[int, set[str]] = {}
        self._holders = holders
        self._find_segments = segments
        self._segments: tuple[Segment, ...] = ()
        self._sampled: list[int] = []
        self._sent: ArrayRecord = ArrayRecord()
        self._weights = self._next = torch.empty(0)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each sampled client, in the order of their partition ids.

        After TooFewClientsError the same round asks other clients, as far as there are any.
        """
        nodes, draw = self.exchange.nodes, (self.seed, self.message_type, server_round)
        if self.failed == server_round:
            self._sampled = nodes.sample(self.fraction_train, *draw, others_than=self._sampled)
        else:
            self.exchange.begin_round()
            self._sampled = nodes.sample(self.fraction_train, *draw)
        self._weights = unpack(arrays, MEMORY)
        if self.state is None:
            self.state = self.algorithm.init(self._weights.numel(), self._holders())
        broadcast = self.algorithm.broadcast(self.state, server_round)
        vectors = {_WEIGHTS: self._weights, **broadcast}
        self._sent = pack_many(vectors, self.exchange.transport)
        settings = {"server-round": server_round, "lr": self.learning_rate(server_round)}
        return self.exchange.messages(
            self._sampled,
            self.message_type,
            arrays=self._sent,
            config={**config, **settings},  # type: ignore[dict-item]
            setup=self._setup,
        )

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
            When fewer than `min_clients_ok` replies were good. Nothing has changed then.
        RunError
            When that is because training diverged.
        """
        combined = self.algorithm.accumulator()
        loss, examples, memories = 0.0, 0, dict[int, str]()
        self.answered = []
        for watcher in self.watchers:
            watcher.begin()
        found = self.exchange.in_order(self._sampled, replies, self._check)
        for partition_id, message, vectors in found:
            trained = self._trained(message)
            reply = self._reply(partition_id, trained, vectors, server_round)
            combined.add(reply)
            self.answered.append(partition_id)
            for watcher in self.watchers:
                watcher.watch(partition_id, reply.update, reply.trained)
            self.exchange.remember(partition_id, self.setup(partition_id))
            if kept := message.content.config_records.get("memory"):
                memories[partition_id] = str(kept["digest"])
            loss += trained.num_examples * trained.loss
            examples += trained.num_examples
        release(self._sent, self.exchange.transport)
        for partition_id in self.exchange.costs.memory_lost:
            self.memories.pop(partition_id, None)
            self.memories_lost += 1
        if len(self.answered) < self.min_clients_ok:
            self.failed = server_round
            raise self._too_few(server_round)
        self.memories.update(memories)
        assert self.state is not None
        total = self._at_the_start(combined.result())
        move, self.state = self.algorithm.step(self.state, total, server_round)
        new = self._moved(move.direction, move.scale)
        return pack(new, MEMORY), MetricRecord({"train-loss": loss / examples})

    def _too_few(self, server_round: int) -> RunError:
        costs = self.exchange.costs
        if not self.answered and costs.not_finite == len(costs.errors) > 0:
            return RunError(
                f"{DIVERGED} in round {server_round} ({costs.errors[0]}): lower lr, or clip"
            )
        found, least = len(self.answered), self.min_clients_ok
        which = "no client" if not found else f"{found} of at least {least} clients"
        reason = costs.errors[0] if costs.errors else "no more were asked"
        return TooFewClientsError(f"{which} finished round {server_round}: {reason}")

    def _check(self, partition_id: int, message: Message, vectors: Vectors) -> None:
        """Raise ReplyError unless a reply is one of this algorithm, over the client's entries."""
        names = (_WEIGHTS, *self.algorithm.sends)
        size = self.size(partition_id, self._weights.numel())
        check_vectors(vectors, dict.fromkeys(names, size), self._weights.dtype)
        self._trained(message)
        memory = message.content.config_records.get("memory")
        if memory is not None and not _SHA256.fullmatch(str(memory.get("digest"))):
            raise ReplyError("a name of its memory that is no sha256")

    def _trained(self, message: Message) -> Trained:
        return check_training(message, **self._most)

    def _at_the_start(self, total: Total) -> Total:
        """Add the weights that the round started from, and which of them are of one tensor."""
        if not self._segments:
            whole = Segment(self._weights.numel(), dims=2)
            self._segments = self._find_segments() or (whole,)
        return total._replace(start=self._weights, segments=self._segments)

    def _reply(
        self, partition_id: int, trained: Trained, vectors: dict[str, Tensor], server_round: int
    ) -> Reply:
        update, entries = self.expand(partition_id, vectors.pop(_WEIGHTS))
        sent = {name: self.expand(partition_id, vector)[0] for name, vector in vectors.items()}
        return Reply(
            update,
            num_examples=trained.num_examples,
            steps=trained.steps,
            lr=self.learning_rate(server_round),
            trained=entries,
            sent=sent,
            start_loss=trained.start_loss,
        )

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
        self.state = state["state"]
        self.memories = {int(pid): digest for pid, digest in state["memories"].items()}
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
        clients = len(self.exchange.nodes)
        name = type(self.algorithm).__name__
        print(f"{name}: {self.fraction_train:g} of {clients} clients a round")
