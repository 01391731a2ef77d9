"""The round loop: it can start at any round, and stop after any.

Flower's `Strategy.start` always counts from round 1; this loop calls the same hooks of the
strategy, and evaluates, records and checkpoints between them.
"""

import time
from typing import Any

from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from engine.records import number
from engine.transport import MEMORY, WIRE, pack, unpack
from fedta_app.config import RunConfig
from fedta_app.evaluation import Figures, measure
from fedta_app.flat import weights_sha256
from fedta_app.metrics import Row
from fedta_app.partition import class_counts, partition_digest
from fedta_app.partition_figure import save_partition_figure
from fedta_app.schedule import learning_rate
from fedta_app.session import RunSession, State, run_facts
from fedta_app.workspace import Workspace, shared_workspace
from strategies import FedAvg, Nodes
from strategies.nodes import discover_nodes

_ROUND_TIMEOUT = 3600.0  # seconds to wait for a round's replies


def run_rounds(grid: Grid, config: RunConfig) -> None:
    """Run a federated training from its start, or its last checkpoint, to its end."""
    nodes = discover_nodes(grid, config.num_clients)
    workspace = shared_workspace(config.with_values(num_clients=len(nodes)))
    # The configuration of the user: num-clients = 0 stays 0 in config.toml and in comparisons.
    session = RunSession(
        config, total_steps=config.num_server_rounds, facts=federated_facts(workspace)
    )
    try:
        counts = class_counts(
            workspace.data.train.labels.cpu().numpy(),
            workspace.partitions,
            workspace.data.num_classes,
        )
        save_partition_figure(session.directory.path / "partition.png", counts)
        FederatedRun(grid, nodes, workspace, session).run()
    except BaseException as error:
        session.fail(f"{type(error).__name__}: {error}")
        raise


def federated_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of the run, the partition included."""
    facts = run_facts(workspace)
    facts["identity"]["partition-sha256"] = partition_digest(workspace.partitions)
    return {**facts, "num-clients": len(workspace.partitions)}


class FederatedRun:
    """The state of a run between rounds: the global weights, and how many rounds they have seen."""

    def __init__(self, grid: Grid, nodes: Nodes, workspace: Workspace, session: RunSession) -> None:
        config = workspace.config
        self.grid = grid
        self.workspace = workspace
        self.session = session
        self.config = config
        self.transport = MEMORY if config.engine == "in-process" else WIRE
        self.strategy = FedAvg(
            nodes,
            fraction_train=config.fraction_train,
            seed=config.seed,
            learning_rate=lambda server_round: learning_rate(config, server_round),
        )
        self.task = ConfigRecord(
            {"num-clients": len(nodes), "layout": workspace.weights.fingerprint}
        )
        self.weights = workspace.weights.vector.clone()
        self.round = 0

    def run(self) -> None:
        """Measure round 0 or restore the last checkpoint, then run the rounds that are left."""
        checkpoint = self.session.checkpoint
        if checkpoint:
            self.weights.copy_(checkpoint.tensors["weights"])
            self.round = int(checkpoint.state["round"])
        else:
            self.session.initial_sha256 = weights_sha256(self.weights)
            self.session.add(Row(0, "start", **self._measure()), self._state)
        self.strategy.summary()
        while self.round < self.config.num_server_rounds:
            if reason := self.session.stop_reason():
                self._finish("stopped", reason)
                return
            self._train_round(self.round + 1)
        self._finish("finished", "")

    def _train_round(self, server_round: int) -> None:
        began = time.perf_counter()
        messages = self.strategy.configure_train(
            server_round, pack(self.weights, self.transport), self.task, self.grid
        )
        replies = self.grid.send_and_receive(messages, timeout=_ROUND_TIMEOUT)
        update, metrics = self.strategy.aggregate_train(server_round, replies)
        self.weights.add_(unpack(update).to(self.weights.device))
        self.round = server_round
        seconds = time.perf_counter() - began
        costs = self.strategy.costs
        last = server_round == self.config.num_server_rounds
        due = last or server_round % self.config.eval_every == 0
        row = Row(
            server_round,
            "train",
            train_loss=number(metrics, "train-loss"),
            bytes_down=costs.bytes_down,
            bytes_up=costs.bytes_up,
            seconds=round(seconds, 4),
            clients_ok=costs.clients_ok,
            clients_failed=len(costs.errors),
            **(self._measure() if due else Figures()),
        )
        self.session.add(row, self._state)

    def _measure(self) -> Figures:
        return measure(self.workspace, self.weights)

    def _state(self) -> State:
        tensors: dict[str, Tensor] = {"weights": self.weights}
        return tensors, {"round": self.round}

    def _finish(self, status: str, reason: str) -> None:
        self.session.finish(status, reason, self._state, weights_sha256(self.weights))
