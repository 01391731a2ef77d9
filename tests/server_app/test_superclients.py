"""FedSeq: chains of clients against loops, and what a chain may not change."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import server_app.phases
import server_app.superclient_phase
from fedta_app.algorithms import make_algorithm
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.finished.reading import load_run
from fedta_app.runs.directory import run_path
from fedta_app.runs.session import RunSession
from fedta_app.training import client as local
from fedta_app.training.workspace import build_workspace
from strategies import SequentialStrategy
from strategies.sequential import chain_order
from tests.runs import summary_of
from tests.server_app.failing import fail_for

RUN: dict[str, Any] = {
    "name": "test", "partition": "dirichlet", "dirichlet-alpha": 0.3, "num-clients": 6,
    "fraction-train": 0.5, "num-server-rounds": 2, "local-steps": 2, "lr": 0.05,
    "weights": "random", "eval-size": 20, "eval-every": 2, "threads": 1, "engine": "in-process",
}  # fmt: skip
SEQUENTIAL = {"superclient-clients": 3}


def run(folder: Path, **values: Any) -> dict[str, Any]:
    return summary_of(folder, {**RUN, **values})


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "test/seed0/metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def final_weights(folder: Path, names: tuple[str, ...], **values: Any) -> Tensor:
    config = RunConfig.from_mapping({**RUN, "results-dir": str(folder), **values})
    state = load_run(run_path(config)).model().state_dict()
    return torch.cat([state[name].flatten() for name in names])


def grouped(monkeypatch: pytest.MonkeyPatch, groups: list[list[int]]) -> None:
    phase = server_app.superclient_phase
    monkeypatch.setattr(phase, "group_clients", lambda counts, most: groups)


def test_superclients_of_one_client_are_fedavg_on_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(tmp_path / "plain")
    one = run(tmp_path / "one", **{"superclient-clients": 1})
    assert one["final-weights-sha256"] == plain["final-weights-sha256"]
    grouped(monkeypatch, [[client] for client in range(6)])
    chains = run(tmp_path / "chains", **SEQUENTIAL)
    assert chains["final-weights-sha256"] == plain["final-weights-sha256"]


@pytest.mark.parametrize("pull", [0.0, 1.0])
def test_one_superclient_is_sgd_from_client_to_client(tmp_path: Path, pull: float) -> None:
    """Everybody in one chain, against a loop; FedProx pulls to what a client received."""
    values = {
        "strategy": "fedprox", "pull": pull, "superclient-clients": 6, "fraction-train": 1.0,
    }  # fmt: skip
    config = RunConfig.from_mapping({**RUN, **values, "results-dir": str(tmp_path)})
    space = build_workspace(config)
    weights = space.weights.vector.clone()
    orders = [chain_order(list(range(6)), 0, server_round) for server_round in (1, 2)]
    assert orders[0] != orders[1]
    for number, order in enumerate(orders):
        for client in order:
            result = local.train_client(
                space, weights, partition_id=client, server_round=number + 1, lr=0.05,
                algorithm=make_algorithm("fedprox", {"pull": pull}),
            )  # fmt: skip
            weights = weights + result.update
    run(tmp_path, **values)
    found = final_weights(tmp_path, space.weights.names, **values)
    torch.testing.assert_close(found, weights, rtol=1e-5, atol=1e-6)


def test_ends_are_weighed_by_the_images_of_their_chains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chains of unequal lengths and sizes, and a client that fails in the midst of one."""
    groups, failing = [[0, 1, 2, 3], [4, 5]], chain_order([0, 1, 2, 3], 0, 1)[1]
    values = {
        **SEQUENTIAL, "fraction-train": 1.0, "num-server-rounds": 1, "partition": "iid",
        "size-spread": 1.0,
    }  # fmt: skip
    grouped(monkeypatch, groups)
    config = RunConfig.from_mapping({**RUN, **values, "results-dir": str(tmp_path)})
    space = build_workspace(config)
    start = space.weights.vector.clone()
    total, images = torch.zeros_like(start), 0
    for group in groups:
        weights, held = start.clone(), 0
        for client in chain_order(group, 0, 1):
            if client != failing:
                result = local.train_client(
                    space, weights, partition_id=client, server_round=1, lr=0.05
                )
                weights, held = weights + result.update, held + result.num_examples
        total, images = total + held * (weights - start), images + held
    fail_for(monkeypatch, lambda key: key[1] == failing)
    run(tmp_path, **values)
    row = rows(tmp_path)[-1]
    assert (row["clients_ok"], row["clients_failed"]) == ("5", "1")
    found = final_weights(tmp_path, space.weights.names, **values)
    torch.testing.assert_close(found, start + total / images, rtol=1e-5, atol=1e-6)


def test_a_chain_of_which_nobody_answers_is_left_out_and_a_round_of_them_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(monkeypatch, [[0, 1, 2], [3, 4, 5]])
    fail_for(monkeypatch, lambda key: key[1] < 3)
    assert run(tmp_path / "a", **SEQUENTIAL, **{"fraction-train": 1.0})["status"] == "finished"
    assert [row["clients_failed"] for row in rows(tmp_path / "a")[2:]] == ["3", "3"]
    fail_for(monkeypatch, lambda key: True)
    with pytest.raises(RunError, match="no client finished round 1: ArithmeticError"):
        run(tmp_path / "b", **SEQUENTIAL)


def test_the_order_in_which_superclients_are_listed_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for groups in ([[0, 3], [1, 5], [2, 4]], [[4, 2], [3, 0], [5, 1]]):
        grouped(monkeypatch, groups)
        folder = tmp_path / str(groups)
        found.add(run(folder, **SEQUENTIAL, **{"fraction-train": 0.7})["final-weights-sha256"])
    assert len(found) == 1


def test_every_hop_is_counted_down_and_up_and_so_are_the_class_counts(tmp_path: Path) -> None:
    summary = run(tmp_path, **SEQUENTIAL)
    size = len(build_workspace(RunConfig.from_mapping(RUN)).weights.vector)
    phases = {row["phase"]: row for row in rows(tmp_path)}
    for column in ("bytes_down", "bytes_up"):
        assert phases["train"][column] == str(3 * 4 * size)  # one chain of three
    assert phases["superclients"]["bytes_up"] == str(6 * 10 * 8)
    assert summary["superclients"] == {"number": 2, "largest": 3}


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_run_that_dies_after_any_round_ends_at_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    values = {**SEQUENTIAL, "strategy": strategy}
    unbroken = run(tmp_path / "unbroken", **values)
    add = RunSession.add

    def add_and_die(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunSession, "add", add_and_die)
    for _ in range(len(rows(tmp_path / "unbroken"))):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", **values)
    broken = run(tmp_path / "broken", **values)
    for key in ("final-weights-sha256", "bytes-up", "superclients"):
        assert broken[key] == unbroken[key]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"strategy": "scaffold"}, "strategy = 'scaffold'"),
        ({"task-figures": True}, "task-figures = true"),
        ({"interference-every": 2}, "interference-every = 2"),
        ({"update-bound": 1.0}, "update-bound = 1"),
    ],
)
def test_what_needs_each_clients_own_update_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"superclient-clients = 3 is not allowed with {reason}"):
        RunConfig.from_mapping({**RUN, **SEQUENTIAL, **values})
    with pytest.raises(ValueError, match="scaffold cannot train clients one after the other"):
        SequentialStrategy(None, make_algorithm("scaffold", {}))  # type: ignore[arg-type]


def test_superclients_need_every_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Tensor:
        raise ArithmeticError("it broke, for example")

    monkeypatch.setattr(torch, "bincount", broken)
    with pytest.raises(
        RunError, match=r"superclients need the class counts .* failed .ArithmeticError"
    ):
        run(tmp_path, **SEQUENTIAL)
