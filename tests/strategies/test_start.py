"""Flower's own `Strategy.start` trains with our strategies; and a client that lost its memory."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from client_app.app import app as client_app
from engine.client_memory import client_memory, forget_run, memories_path
from engine.inprocess import run_in_process
from engine.transport import MEMORY, pack, unpack
from fedta_app.algorithms import algorithms, make_algorithm
from fedta_app.config import RunConfig
from fedta_app.runs.session import RunSession
from fedta_app.training.workspace import shared_workspace
from fedta_app.vectors import weights_sha256
from server_app.app import app as server_app
from strategies import Exchange, FedAvg, FederatedStrategy, MaskedFedAvg, discover_nodes

RUN = {
    "name": "test", "partition": "classes", "num-clients": 8, "num-classes-per-client": 2,
    "fraction-train": 0.5, "num-server-rounds": 3, "local-steps": 2, "lr": 0.02, "threads": 1,
    "eval-every": 3, "eval-size": 20, "weights": "random", "engine": "in-process",
}  # fmt: skip


QUICK = {"fedavg", "fedadam", "scaffold"}  # the others are alike: only slow tests run them


def with_flowers_start(folder: Path, name: str) -> tuple[torch.Tensor, list[int]]:
    """Train by `Strategy.start` on the in-process grid; return weights and measured rounds."""
    config = RunConfig.from_mapping({**RUN, "strategy": name, "results-dir": str(folder)})
    result: dict[str, Any] = {}
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        workspace = shared_workspace(config, None)
        settings = {"num-clients": config.num_clients, "layout": workspace.layout}
        nodes = discover_nodes(grid, config.num_clients)
        exchange = Exchange(nodes, settings, client_memory(workspace).store, MEMORY)
        strategy = FederatedStrategy(
            exchange,
            make_algorithm(name, vars(config)),
            fraction_train=config.fraction_train,
            seed=config.seed,
            learning_rate=lambda server_round: config.lr,
            segments=workspace.weights.layout.segments,
        )
        measured = []

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            measured.append(server_round)
            return MetricRecord({"norm": float(unpack(arrays, MEMORY).norm())})

        start = workspace.weights.vector.clone()
        before = start.clone()
        found = strategy.start(
            grid, pack(start, MEMORY), num_rounds=config.num_server_rounds, evaluate_fn=evaluate
        )
        assert torch.equal(start, before)  # the caller's weights are the caller's
        assert sorted(found.train_metrics_clientapp) == [1, 2, 3]
        result["weights"] = unpack(found.arrays, MEMORY).clone()
        result["measured"] = measured

    try:
        run_in_process(app, client_app, config.to_mapping(), config.num_clients)
    finally:
        forget_run()
    return result["weights"], result["measured"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in algorithms()
    ],
)
def test_flowers_start_ends_at_the_weights_of_our_own_loop(name: str, tmp_path: Path) -> None:
    weights, measured = with_flowers_start(tmp_path / "flower", name)
    assert measured == [0, 1, 2, 3]
    values = {**RUN, "strategy": name, "results-dir": str(tmp_path / "ours")}
    run_in_process(server_app, client_app, values, 8)
    summary = json.loads((tmp_path / "ours/test/seed0/summary.json").read_text())
    assert weights_sha256(weights) == summary["final-weights-sha256"]


def test_the_names_of_the_strategies_are_those_of_their_algorithms() -> None:
    exchange: Any = None
    options: dict[str, Any] = {"fraction_train": 1.0, "seed": 0, "learning_rate": lambda r: 0.1}
    assert FedAvg(exchange, **options).algorithm == make_algorithm("fedavg", {})
    masked = MaskedFedAvg(exchange, coverage_exponent=0.5, **options)
    assert masked.algorithm == make_algorithm("masked-fedavg", {"coverage_exponent": 0.5})


def test_a_client_that_lost_its_memory_is_counted_and_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a new disk: its reply is an error once, and the next time it trains from nothing.

    That is so on a machine of the client's own; on the server's the run stops.
    """
    monkeypatch.setattr(Exchange, "one_machine", False)
    values = {
        **RUN, "strategy": "scaffold", "fraction-train": 1.0, "results-dir": str(tmp_path),
        "num-server-rounds": 4,
    }  # fmt: skip
    run_in_process(server_app, client_app, {**values, "max-minutes": 0.0}, 8)
    folder = tmp_path / "test/seed0"
    complete = json.loads((folder / "summary.json").read_text())
    assert complete["final"]["clients_failed"] == 0
    assert "client-memories-lost" not in complete

    # The same run again, killed after round 2; then client 3 loses what it kept.
    shutil.rmtree(folder)
    _stop_after(values, rounds=2)
    config = RunConfig.from_mapping(values)
    memories = memories_path(shared_workspace(config, None))
    forget_run()
    assert sorted(path.name for path in memories.iterdir()) == [str(pid) for pid in range(8)]
    shutil.rmtree(memories / "3")
    run_in_process(server_app, client_app, values, 8)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["client-memories-lost"] == 1
    with (folder / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["phase"] == "train"]
    failed = {row["round"]: row["clients_failed"] for row in rows}
    assert failed == {"1": "0", "2": "0", "3": "1", "4": "0"}
    assert summary["final-weights-sha256"] != complete["final-weights-sha256"]


def _stop_after(values: dict[str, Any], rounds: int) -> None:
    add = RunSession.add

    def add_and_die(self: RunSession, row: Any, state: Any) -> None:
        add(self, row, state)
        if row.phase == "train" and row.round == rounds:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunSession, "add", add_and_die)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(server_app, client_app, values, 8)
