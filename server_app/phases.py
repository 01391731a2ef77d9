"""What all phases of a federated run share, and the phase that trains."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from engine.client_memory import Setup
from engine.transport import MEMORY, pack, pack_many, release, unpack
from fedta_app.algorithms import make_algorithm
from fedta_app.pace import Pace
from fedta_app.runs.directory import run_path
from fedta_app.runs.loop import Phase, diverged
from fedta_app.runs.metrics import Row
from fedta_app.secure import FEATURE_SUMS, FixedPoint, SecureSum
from fedta_app.training.evaluation import measured_when_due
from fedta_app.training.head_fit import NOT_FINITE
from server_app.interference import InterferenceLog
from server_app.personal import has_own_models, personal_figures
from server_app.privacy import announce, seed_of_draws, spent
from server_app.ridge import RidgeSums, among, groups_of
from server_app.state import ServerState
from server_app.task_report import TaskReport, table_digests
from strategies import FederatedStrategy, SequentialStrategy
from strategies.bounding import BoundedUpdates
from strategies.private import PrivateStrategy
from strategies.reply_checks import TooFewClientsError, check_vectors, only_vector
from strategies.secure import MaskedTotal, SecureStrategy, shares_of

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
        self.state.welcome_back()
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
        check: Callable[[int, Tensor], None],
        *,
        arrays: ArrayRecord | None = None,
        setup: Setup = _NO_SETUP,
        config: Mapping[str, Any] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Send a message to each client; yield partition id and vector of each good reply.

        `check` raises ReplyError for a vector that is not a good one of that client.
        """
        exchange = self.state.exchange

        def check_reply(partition_id: int, reply: Message, vectors: Mapping[str, Tensor]) -> None:
            check(partition_id, only_vector(vectors))

        messages = exchange.messages(
            clients, message_type, arrays=arrays, config=config, setup=lambda _: setup
        )
        for answer in exchange.in_order(clients, self.state.send(messages), check_reply):
            exchange.remember(answer.partition_id, setup)
            yield answer.partition_id, answer.vectors["vector"]

    def ask_for_sum(
        self,
        clients: list[int],
        message_type: str,
        size: int,
        point: FixedPoint,
        name: str,
        *,
        setup: Setup = _NO_SETUP,
        config: Mapping[str, Any] | None = None,
        **message: Any,
    ) -> Tensor:
        """Return the sum, float64 of shape (size,), of vectors that the server does not see.

        `name` tells the sums of a run apart. The sum is of the clients that answered.

        Raises
        ------
        RunError
            When they are too few to open it.
        """
        state = self.state
        share = state.config.secure_threshold
        masked = MaskedTotal(SecureSum.over(state.config.seed, name, clients, share), point)
        told = {**masked.whole.to_config(), "secure-fraction": point.fraction}
        settings = {**(config or {}), **told}

        def check(client: int, vector: Tensor) -> None:
            check_vectors({"vector": vector}, {"vector": size}, point.dtype)

        found = self.ask(clients, message_type, check, setup=setup, config=settings, **message)
        for client, vector in found:
            masked.add(client, vector)

        def shares(
            answered: Sequence[int], told: Mapping[str, Any]
        ) -> Iterator[tuple[int, Tensor]]:
            messages = state.exchange.messages(
                answered, "train.unmask", config=told, setup=lambda _: setup
            )
            return shares_of(state.exchange, masked.whole, answered, state.send(messages))

        return masked.opened(shares, state.exchange.costs.errors)

    def add_feature_sums(
        self, sums: RidgeSums, clients: list[int], number: int, **message: Any
    ) -> None:
        """Ask clients for the sums over their features, and add them."""
        if self.state.config.secure_aggregation:
            name, size = f"head {self.name} {number} {clients[0]}", len(sums)
            total = self.ask_for_sum(clients, "train.head", size, FEATURE_SUMS, name, **message)
            sums.add(clients, [(clients[0], total)])
        else:
            sums.add(clients, self.ask(clients, "train.head", sums.check, **message))

    def train_round(
        self, strategy: FederatedStrategy, number: int, weights: Tensor
    ) -> tuple[Tensor, float | None]:
        """Return the weights (P,) and the mean training loss after a round of a strategy.

        There is no loss where Poisson sampling chose no client. A round with too few good replies
        is repeated once, with other clients.
        """
        try:
            return self._attempt(strategy, number, weights)
        except TooFewClientsError as error:
            print(f"{error}; the round is repeated with other clients", flush=True)
            return self._attempt(strategy, number, weights)

    def _attempt(
        self, strategy: FederatedStrategy, number: int, weights: Tensor
    ) -> tuple[Tensor, float | None]:
        grid, arrays = self.state.grid, pack(weights, MEMORY)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        arrays, metrics = strategy.aggregate_train(number, self.state.send(messages))
        return unpack(arrays, MEMORY), cast(float | None, metrics.get("train-loss"))


class Train(FederatedPhase):
    """Rounds of the algorithm, on all weights or on those of the mask."""

    name = "train"

    def __init__(self, state: ServerState, strategy: FederatedStrategy, pace: Pace) -> None:
        super().__init__(state, state.config.num_server_rounds)
        self.strategy = strategy
        self.pace = pace
        self.interference = InterferenceLog(state, pace.learning_rate)
        # Made before a checkpoint is read, when the weights are still those before training.
        self._start = state.weights.clone() if state.config.task_figures else state.weights

    def work(self, number: int) -> float | None:
        """Train for one round and return the mean loss of the clients."""
        state = self.state
        weights, loss = self.train_round(self.strategy, number, state.travelling_weights())
        state.set_travelling_weights(weights)
        if self.strategy.memories_lost:
            state.notes["client-memories-lost"] = self.strategy.memories_lost
        if state.config.head_refresh and number % state.config.head_refresh == 0:
            self._refresh_head(number)
        return loss

    def _refresh_head(self, number: int) -> None:
        """Solve the ridge head again, over the features that the weights of now give."""
        state, exchange = self.state, self.state.exchange
        everybody = state.config.head_refresh_clients == "all"
        clients = list(range(len(exchange.nodes))) if everybody else self.strategy.answered
        sums = RidgeSums(state)
        if not math.isfinite(sums.longest):  # else clients would be missing, with such features
            raise diverged(number, NOT_FINITE)
        sent = pack_many({"vector": state.travelling_weights()}, exchange.transport)
        setup = Setup(head=state.head, down=state.mask)
        secure = state.config.secure_aggregation
        for group in groups_of(clients, state.clients_per_round, secure=secure):
            self.add_feature_sums(
                sums, group, number, arrays=sent, setup=setup, config=among(state.config, clients)
            )
        release(sent, exchange.transport)
        sums.solve()

    def run_round(self, number: int) -> Row:
        """Train for one round, and measure the model and its task vectors when that is due."""
        state, config = self.state, self.state.config
        report = TaskReport() if config.task_figures and number == self.num_rounds else None
        interference = self.interference if self.interference.due(number) else None
        watchers = (report, interference, self.pace.noise_scale)
        self.strategy.watchers = [part for part in watchers if part]
        row = measured_when_due(super().run_round(number), config, state.measure)
        if report:
            report.save(run_path(config))
            found = report.save_arithmetic(run_path(config), state, self._start)
            state.notes["task-vectors"] = found
            state.notes["outputs"] = table_digests(run_path(config))  # nothing else holds them
        if interference:
            interference.measure(number)
        if adapted := self.pace.after_round(number, row.train_loss):
            state.notes.setdefault("adapted", []).append({"round": number + 1, **adapted})
        if number == self.num_rounds and has_own_models(config):
            algorithm, memories = self.strategy.algorithm, self.strategy.memories
            state.notes["personal"] = personal_figures(state, algorithm, memories)
        if isinstance(self.strategy, PrivateStrategy):
            row = replace(row, epsilon=spent(state, self.strategy, number))
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured of the updates' interference, and how the pace adapted."""
        return {**self.interference.state_dict(), "pace": self.pace.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was measured, and at the same pace."""
        self.interference.load_state_dict(state)
        self.pace.load_state_dict(state.get("pace", {}))


def make_strategy(state: ServerState, pace: Pace) -> FederatedStrategy:
    """Return the strategy around the algorithm of the configuration."""
    config = state.config
    algorithm = make_algorithm(config.strategy, vars(config))
    options: dict[str, Any] = {
        "fraction_train": config.fraction_train,
        "seed": seed_of_draws(config, deployed=state.deployed),
        "learning_rate": pace.learning_rate,
        "local_steps": pace.local_steps,
        "batch_size": pace.batch_size,
        "setup": state.setup,
        "expand": state.expand,
        "size": state.trained_by,
        "holders": state.holders,
        "clients": state.taking_part,
        "segments": state.segments,
        **state.limits(),
    }
    if config.dp_noise:
        del options["min_clients_ok"]
        strategy = PrivateStrategy(
            state.exchange,
            algorithm,
            clip=config.update_bound,
            noise=config.dp_noise,
            poisson=config.dp_sampling == "poisson",
            **options,
        )
        announce(config, strategy)
        return strategy
    if config.secure_aggregation:
        return SecureStrategy(
            state.exchange,
            algorithm,
            largest=config.secure_range,
            most_held=max(state.held),
            share=config.secure_threshold,
            timeout=config.round_timeout,
            **options,
        )
    if config.update_bound:
        options["accumulator"] = lambda: BoundedUpdates(
            algorithm.accumulator(),
            config.update_bound,
            by_median=config.update_bound_kind == "median",
        )
    if config.superclient_clients > 1:
        return SequentialStrategy(
            state.exchange, algorithm, timeout=config.round_timeout, **options
        )
    return FederatedStrategy(state.exchange, algorithm, **options)
