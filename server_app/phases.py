"""What a phase of a run is, and the two that every run has: the start and the training."""

import time
from typing import Any, ClassVar

import torch
from flwr.app import ConfigRecord
from torch import Tensor

from engine.records import number
from engine.transport import pack, release, unpack
from fedta_app.aggregation.means import apply_update
from fedta_app.runs.directory import check_loss, run_path
from fedta_app.runs.metrics import Figures, Row
from fedta_app.training.evaluation import check_above_chance
from fedta_app.training.schedule import learning_rate
from server_app.state import ServerState
from server_app.task_report import TaskReport
from strategies import FedAvg, MaskedFedAvg, TaskArithmetic, TiesFedAvg


class Phase:
    """Some rounds of one kind; between two of them the run may stop and go on elsewhere.

    Attributes
    ----------
    round : int
        How many of `num_rounds` are done.
    """

    name: ClassVar[str]

    def __init__(self, state: ServerState, num_rounds: int) -> None:
        self.state = state
        self.num_rounds = num_rounds
        self.round = 0

    def run_round(self, number_: int) -> Row:
        """Do round 1, 2, ... of the phase and return its row."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return partial results that a checkpoint keeps."""
        return {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over partial results that a checkpoint kept."""

    def row(
        self, number_: int, began: float, loss: float | None = None, figures: Figures | None = None
    ) -> Row:
        """Return the row of a round that began at this `time.perf_counter()`."""
        costs = self.state.exchange.costs
        if costs.errors:
            print(f"{len(costs.errors)} clients failed; the first: {costs.errors[0]}", flush=True)
        return Row(
            number_,
            self.name,
            train_loss=loss,
            bytes_down=costs.bytes_down,
            bytes_up=costs.bytes_up,
            seconds=round(time.perf_counter() - began, 4),
            clients_ok=costs.clients_ok,
            clients_failed=len(costs.errors),
            **(figures or Figures()),
        )


class Start(Phase):
    """Round 0: the model before training is measured; one at chance is not worth the rest."""

    name = "start"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, 1)

    def run_round(self, number_: int) -> Row:
        """Measure the model, head and all."""
        figures = self.state.measure()
        if self.state.head:
            check_above_chance(self.state.workspace, figures["val_accuracy"])
        return Row(0, self.name, **figures)


class Train(Phase):
    """FedAvg, or a variant, on all weights or on those of the mask."""

    name = "train"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, state.config.num_server_rounds)
        self.strategy = make_strategy(state, self._expand)
        # Made before a checkpoint is read, when the weights are still those before training.
        self._start = state.weights.clone() if state.config.task_figures else state.weights

    def run_round(self, number_: int) -> Row:
        """Train one round and measure it when that is due."""
        state, config = self.state, self.state.config
        began = time.perf_counter()
        travelling = state.travelling()
        sent = state.weights if travelling is None else travelling.gather(state.weights)
        arrays = pack(sent, state.transport)
        messages = self.strategy.configure_train(number_, arrays, ConfigRecord(), state.grid)
        replies = state.send(messages)
        last = number_ == self.num_rounds
        report = TaskReport() if last and config.task_figures else None
        self.strategy.watch = report.watch if report else None
        reply, metrics = self.strategy.aggregate_train(number_, replies)
        release(arrays)
        update = unpack(reply).to(state.weights.device)
        if travelling is None:
            apply_update({"_": state.weights}, {"_": update}, scale=self.strategy.scale())
        else:
            travelling.add_(state.weights, update, self.strategy.scale())
        loss = number(metrics, "train-loss")
        check_loss(loss, number_)
        row = self.row(number_, began, loss=loss)
        if last or number_ % config.eval_every == 0:
            row = row.measured(**state.measure(last=last))
        if report:
            report.save(run_path(config))
            found = report.save_arithmetic(run_path(config), state, self._start)
            state.notes["task-vectors"] = found
        return row

    def _expand(self, partition_id: int, vector: Tensor) -> tuple[Tensor, Tensor | None]:
        """Undo the packing by a client's own mask."""
        own = self.state.memory.mask(self.state.own_masks.get(partition_id, ""))
        travelling = self.state.travelling()
        if own is None or travelling is None:
            return vector, None
        trained = own.mask[travelling.mask]
        update = torch.zeros(len(trained), dtype=vector.dtype, device=trained.device)
        update[trained] = vector.to(trained.device)
        return update, trained


def make_strategy(state: ServerState, expand: Any) -> FedAvg:
    """Return the strategy of the configuration."""
    config = state.config
    options: dict[str, Any] = {
        "fraction_train": config.fraction_train,
        "seed": config.seed,
        "learning_rate": lambda server_round: learning_rate(config, server_round),
        "setup": state.setup,
        "expand": expand,
    }
    if config.strategy == "masked-fedavg":
        exponent = config.coverage_exponent
        return MaskedFedAvg(state.exchange, coverage_exponent=exponent, **options)
    if config.strategy == "task-arithmetic":
        return TaskArithmetic(state.exchange, server_scale=config.server_scale, **options)
    if config.strategy == "ties":
        return TiesFedAvg(state.exchange, **options)
    if config.strategy == "fedavg":
        return FedAvg(state.exchange, **options)
    raise ValueError(f"strategy = {config.strategy!r} has no class here")
