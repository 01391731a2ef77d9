"""The phases that every federated run has: the start and the training."""

import time
from typing import ClassVar

from flwr.app import ConfigRecord

from engine.records import number as number_of
from engine.transport import MEMORY, pack, unpack
from fedta_app.algorithms import make_algorithm
from fedta_app.runs.directory import check_loss, run_path
from fedta_app.runs.loop import Phase
from fedta_app.runs.metrics import Figures, Row
from fedta_app.training.evaluation import check_above_chance
from fedta_app.training.schedule import learning_rate
from server_app.state import ServerState
from server_app.task_report import TaskReport
from strategies import FederatedStrategy


class FederatedPhase(Phase):
    """A phase that talks to clients."""

    name: ClassVar[str]

    def __init__(self, state: ServerState, num_rounds: int) -> None:
        super().__init__(num_rounds)
        self.state = state

    def row(
        self, number: int, began: float, loss: float | None = None, figures: Figures | None = None
    ) -> Row:
        """Return the row of a round that began at this `time.perf_counter()`."""
        costs = self.state.exchange.costs
        if costs.errors:
            print(f"{len(costs.errors)} clients failed; the first: {costs.errors[0]}", flush=True)
        return Row(
            number,
            self.name,
            train_loss=loss,
            bytes_down=costs.bytes_down,
            bytes_up=costs.bytes_up,
            seconds=round(time.perf_counter() - began, 4),
            clients_ok=costs.clients_ok,
            clients_failed=len(costs.errors),
            **(figures or Figures()),
        )


class Start(FederatedPhase):
    """Round 0: the model before training is measured; one at chance is not worth the rest."""

    name = "start"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, 1)

    def run_round(self, number: int) -> Row:
        """Measure the model, head and all."""
        figures = self.state.measure()
        if self.state.head:
            check_above_chance(self.state.workspace, figures["val_accuracy"])
        return Row(0, self.name, **figures)


class Train(FederatedPhase):
    """Rounds of the algorithm, on all weights or on those of the mask."""

    name = "train"

    def __init__(self, state: ServerState, strategy: FederatedStrategy) -> None:
        super().__init__(state, state.config.num_server_rounds)
        self.strategy = strategy
        # Made before a checkpoint is read, when the weights are still those before training.
        self._start = state.weights.clone() if state.config.task_figures else state.weights

    def run_round(self, number: int) -> Row:
        """Train one round and measure it when that is due."""
        state, config = self.state, self.state.config
        began = time.perf_counter()
        arrays = pack(state.travelling_weights(), MEMORY)
        messages = self.strategy.configure_train(number, arrays, ConfigRecord(), state.grid)
        replies = state.send(messages)
        last = number == self.num_rounds
        report = TaskReport() if last and config.task_figures else None
        self.strategy.watch = report.watch if report else None
        arrays, metrics = self.strategy.aggregate_train(number, replies)
        state.set_travelling_weights(unpack(arrays))
        if self.strategy.memories_lost:
            state.notes["client-memories-lost"] = self.strategy.memories_lost
        loss = number_of(metrics, "train-loss")
        check_loss(loss, number)
        row = self.row(number, began, loss=loss)
        if last or number % config.eval_every == 0:
            row = row.measured(**state.measure(last=last))
        if report:
            report.save(run_path(config))
            found = report.save_arithmetic(run_path(config), state, self._start)
            state.notes["task-vectors"] = found
        return row


def make_strategy(state: ServerState) -> FederatedStrategy:
    """Return the strategy around the algorithm of the configuration."""
    config = state.config
    return FederatedStrategy(
        state.exchange,
        make_algorithm(config.strategy, vars(config)),
        fraction_train=config.fraction_train,
        seed=config.seed,
        learning_rate=lambda server_round: learning_rate(config, server_round),
        setup=state.setup,
        expand=state.expand,
        holders=state.holders,
    )
