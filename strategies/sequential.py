"""FedSeq: the model goes from client to client inside a superclient, and the ends are combined.

Zaccone et al., "Speeding up Heterogeneous Federated Learning with Sequentially Trained
Superclients", ICPR 2022, arXiv 2201.12211. `fedta_app.partition.superclients` makes the groups.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from engine.replies import replies_as_they_come
from engine.transport import pack_many, release
from fedta_app.algorithms import Algorithm, Reply, Vectors
from fedta_app.seeding import checked_seed, numpy_generator
from fedta_app.vectors.arithmetic import stepped
from strategies.exchange import Exchange
from strategies.federated import FederatedStrategy
from strategies.nodes import choose
from strategies.reading import WEIGHTS


@dataclass
class Chain:
    """The clients of a superclient in the order of a round, and what they did so far.

    Attributes
    ----------
    clients : list of int
    reply : Reply or None
        The sum of their updates, examples and steps; None before the first good reply.
    """

    clients: list[int]
    reply: Reply | None = None

    def add(self, reply: Reply) -> None:
        """Add the reply of the next client."""
        if self.reply is None:
            self.reply = reply._replace(update=reply.update.clone())
            return
        trained = self.reply.trained
        if trained is not None and reply.trained is not None:
            trained = trained | reply.trained
        self.reply = self.reply._replace(
            update=self.reply.update.add_(reply.update),
            num_examples=self.reply.num_examples + reply.num_examples,
            steps=self.reply.steps + reply.steps,
            trained=trained,
        )

    def weights(self, start: Tensor) -> Tensor:
        """Return the weights (P,) that the next client gets, given those of the round's start."""
        return start if self.reply is None else stepped(start, self.reply.update.to(start.device))


class SequentialStrategy(FederatedStrategy):
    """Rounds in which chains of clients stand for single ones.

    A round samples superclients, orders the clients of each at random, and has as many stages as
    the longest chain: in a stage one client of every chain trains what the one before it left.
    A client that fails is skipped. The algorithm gets one reply for each chain: the sum of its
    updates, with the examples of all its clients as its weight.

    Parameters
    ----------
    exchange, algorithm, **options
        As for `FederatedStrategy`; `fraction_train` is the share of superclients.
    timeout : float
        Seconds to wait for the replies of a stage.

    Attributes
    ----------
    superclients : list of list of int
        The clients of each, sorted, in the order of their first ones; at first every client is one.

    Raises
    ------
    ValueError
        If the algorithm needs the update of each client from the weights of the round's start.
    """

    def __init__(
        self,
        exchange: Exchange,
        algorithm: Algorithm,
        *,
        timeout: float = 3600.0,
        **options: Any,
    ) -> None:
        if not algorithm.sequential:
            raise ValueError(f"{algorithm.name} cannot train clients one after the other")
        super().__init__(exchange, algorithm, **options)
        self.superclients = [[client] for client in range(len(exchange.nodes))]
        self._timeout = timeout
        self._chains: list[Chain] = []
        self._broadcast: Vectors = {}
        self._sends: dict[int, ArrayRecord] = {}
        self._told = ConfigRecord()
        self._grid: Grid

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for the first client of every chain."""
        draw = (self.fraction_train, self.seed, self.message_type, server_round)
        others_than = self._sampled if self.failed == server_round else ()
        self._broadcast = self._begin(server_round, arrays)
        self._grid, self._told = grid, config
        groups = self.superclients
        self._sampled = choose(len(groups), *draw, others_than=others_than)
        self._chains = [
            Chain(chain_order(groups[number], self.seed, server_round)) for number in self._sampled
        ]
        return self._stage(server_round, 0)

    def _stage(self, server_round: int, number: int) -> list[Message]:
        """Return a message for the client at a position of every chain that is long enough."""
        self._sends = {
            chain.clients[number]: pack_many(
                {WEIGHTS: chain.weights(self._weights), **self._broadcast}, self.exchange.transport
            )
            for chain in self._chains
            if number < len(chain.clients)
        }
        return self._messages(self._sends, self._sends.__getitem__, server_round, self._told)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Run the other stages; return the new weights and the mean training loss.

        Raises
        ------
        TooFewClientsError
            When fewer than `min_clients_ok` clients answered.
        """
        chain_of = {client: chain for chain in self._chains for client in chain.clients}
        self._fold(replies, chain_of, server_round)
        for number in range(1, max(len(chain.clients) for chain in self._chains)):
            messages = self._stage(server_round, number)
            answers = replies_as_they_come(self._grid, messages, self._timeout)
            self._fold(answers, chain_of, server_round)
        self.answered.sort()
        combined = self.accumulator()
        for chain in self._chains:
            if chain.reply is not None:
                combined.add(chain.reply)
        return self._finish(combined, server_round)

    def _fold(
        self, replies: Iterable[Message], chain_of: dict[int, Chain], server_round: int
    ) -> None:
        """Add the replies of a stage to their chains."""
        for client, reply in self._good(list(self._sends), replies, server_round):
            chain_of[client].add(reply)
        for sent in self._sends.values():
            release(sent, self.exchange.transport)

    def state_dict(self) -> dict[str, Any]:
        """Return what the base class does, and the superclients."""
        return {**super().state_dict(), "superclients": self.superclients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        groups = state["superclients"]
        members = [client for group in groups for client in group]
        # Not all clients: those that did not send their counts are in no group.
        there = set(members) <= set(range(len(self.exchange.nodes)))
        if not there or not all(groups) or len(set(members)) < len(members):
            raise ValueError("the superclients are not groups of the clients")
        self.superclients = groups
        super().load_state_dict({key: state[key] for key in state if key != "superclients"})

    def summary(self) -> None:
        """Print how superclients are sampled."""
        name, groups = type(self.algorithm).__name__, len(self.superclients)
        print(f"{name}: {self.fraction_train:g} of {groups} superclients a round")


def chain_order(clients: list[int], seed: int, server_round: int) -> list[int]:
    """Return the clients of a superclient in the order in which they train in a round."""
    generator = numpy_generator(checked_seed(seed), "chain", server_round, min(clients))
    order: list[int] = generator.permutation(clients).tolist()
    return order
