"""What all phases of a federated run share, and the phase that trains."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from engine.client_memory import Setup
from engine.transport import MEMORY, pack, pack_many, release, unpack
from fedta_app.algorithms import make_algorithm
from fedta_app.runs.directory import run_path
from fedta_app.runs.loop import Phase
from fedta_app.runs.metrics import Row
from fedta_app.training.evaluation import measured_when_due
from fedta_app.training.schedule import learning_rate, local_steps
from server_app.interference import InterferenceLog
from server_app.personal import personal_figures
from server_app.ridge import RidgeSums
from server_app.state import ROUND_TIMEOUT, ServerState
from server_app.task_report import TaskReport
from strategies import FederatedStrategy, SequentialStrategy
from strategies.bounding import BoundedUpdates
from strategies.reply_checks import TooFewClientsError, only_vector

_NO_SETUP = Setup()
_MOST_REJECTED = 100  # that summary.json names


class FederatedPhase(Phase):
    """A phase that asks clients; its rows hold what that cost."""

    def __init__(self, state: ServerState, num_rounds: int) -> None:
        super().__init__(num_rounds)
        self.state = state

    def run_round(self, number: int) -> Row:
        """Do a round and return its row, with bytes and the number of clients that answered."""
        self.state.exchange.begin_round()
        row = super().run_round(number)
        costs = self.state.exchange.costs
        if costs.errors:
            print(f"{len(costs.errors)} clients failed; the first: {costs.errors[0]}", flush=True)
        self._note_rejected(number)
        return replace(
            row,
            bytes_down=costs.bytes_down,
            bytes_up=costs.bytes_up,
            clients_ok=costs.clients_ok,
            clients_failed=len(costs.errors),
            clients_rejected=len(costs.rejected),
        ).with_peaks(costs.peaks)

    def _note_rejected(self, number: int) -> None:
        """Let summary.json say whose replies were rejected, and why."""
        if rejected := self.state.exchange.costs.rejected:
            noted = self.state.notes.setdefault("rejected", [])
            where = {"phase": self.name, "round": number}
            noted += [{**where, "client": client, "sent": why} for client, why in rejected.items()]
            del noted[_MOST_REJECTED:]

    def ask(
        self,
        clients: list[int],
        message_type: str,
        check: Callable[[Tensor], None],
        *,
        arrays: ArrayRecord | None = None,
        setup: Setup = _NO_SETUP,
        config: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Send a message to each client; yield partition id and vector of each good reply.

        `check` raises ReplyError for a vector that is not good.
        """
        exchange = self.state.exchange

        def check_reply(partition_id: int, reply: Message, vectors: Mapping[str, Tensor]) -> None:
            check(only_vector(vectors))

        messages = exchange.messages(
            clients, message_type, arrays=arrays, config=config, setup=lambda _: setup
        )
        for answer in exchange.in_order(clients, self.state.send(messages), check_reply):
            exchange.remember(answer.partition_id, setup)
            yield answer.partition_id, answer.vectors["vector"]

    def train_round(
        self, strategy: FederatedStrategy, number: int, weights: Tensor
    ) -> tuple[Tensor, float]:
        """Return the weights (P,) and the mean training loss after a round of a strategy.

        A round with too few good replies is repeated once, with other clients.
        """
        try:
            return self._attempt(strategy, number, weights)
        except TooFewClientsError as error:
            print(f"{error}; the round is repeated with other clients", flush=True)
            return self._attempt(strategy, number, weights)

    def _attempt(
        self, strategy: FederatedStrategy, number: int, weights: Tensor
    ) -> tuple[Tensor, float]:
        grid, arrays = self.state.grid, pack(weights, MEMORY)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, metrics = strategy.aggregate_train(number, self.state.send(messages))
        return unpack(arrays, MEMORY), float(cast(float, metrics["train-loss"]))


class Train(FederatedPhase):
    """Rounds of the algorithm, on all weights or on those of the mask."""

    name = "train"

    def __init__(self, state: ServerState, strategy: FederatedStrategy) -> None:
        super().__init__(state, state.config.num_server_rounds)
        self.strategy = strategy
        self.interference = InterferenceLog(state)
        # Made before a checkpoint is read, when the weights are still those before training.
        self._start = state.weights.clone() if state.config.task_figures else state.weights

    def work(self, number: int) -> float:
        """Train for one round and return the mean loss of the clients."""
        state = self.state
        weights, loss = self.train_round(self.strategy, number, state.travelling_weights())
        state.set_travelling_weights(weights)
        if self.strategy.memories_lost:
            state.notes["client-memories-lost"] = self.strategy.memories_lost
        if state.config.head_refresh and number % state.config.head_refresh == 0:
            self._refresh_head()
        return loss

    def _refresh_head(self) -> None:
        """Solve the ridge head again, over the features that the weights of now give."""
        state, exchange = self.state, self.state.exchange
        everybody = state.config.head_refresh_clients == "all"
        clients = list(range(len(exchange.nodes))) if everybody else self.strategy.answered
        step, sums = state.clients_per_round, RidgeSums(state)
        sent = pack_many({"vector": state.travelling_weights()}, exchange.transport)
        setup = Setup(head=state.head, down=state.mask)
        for first in range(0, len(clients), step):
            group = clients[first : first + step]
            sums.add(self.ask(group, "train.head", sums.check, arrays=sent, setup=setup))
        release(sent, exchange.transport)
        sums.solve()

    def run_round(self, number: int) -> Row:
        """Train for one round, and measure the model and its task vectors when that is due."""
        state, config = self.state, self.state.config
        report = TaskReport() if config.task_figures and number == self.num_rounds else None
        interference = self.interference if self.interference.due(number) else None
        self.strategy.watchers = [part for part in (report, interference) if part]
        row = measured_when_due(super().run_round(number), config, state.measure)
        if report:
            report.save(run_path(config))
            found = report.save_arithmetic(run_path(config), state, self._start)
            state.notes["task-vectors"] = found
        if interference:
            interference.measure(number)
        if self.strategy.algorithm.personal and number == self.num_rounds:
            state.notes["personal"] = personal_figures(state, self.strategy.memories)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured of the updates' interference."""
        return self.interference.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was measured."""
        self.interference.load_state_dict(state)


def make_strategy(state: ServerState) -> FederatedStrategy:
    """Return the strategy around the algorithm of the configuration."""
    config = state.config
    algorithm = make_algorithm(config.strategy, vars(config))
    options: dict[str, Any] = {
        "fraction_train": config.fraction_train,
        "seed": config.seed,
        "learning_rate": lambda server_round: learning_rate(config, server_round),
        "local_steps": lambda server_round: local_steps(config, server_round),
        "setup": state.setup,
        "expand": state.expand,
        "size": state.trained_by,
        "holders": state.holders,
        "segments": state.segments,
        **state.limits(),
    }
    if config.update_bound:
        options["accumulator"] = lambda: BoundedUpdates(
            algorithm.accumulator(),
            config.update_bound,
            by_median=config.update_bound_kind == "median",
        )
    if config.superclient_clients > 1:
        return SequentialStrategy(state.exchange, algorithm, timeout=ROUND_TIMEOUT, **options)
    return FederatedStrategy(state.exchange, algorithm, **options)
