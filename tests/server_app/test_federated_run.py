"""Federated runs from start to end, in this process, on digits."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.runs.checkpoint import load_checkpoint, save_checkpoint
from fedta_app.runs.metrics import ADDED, COLUMNS, COSTS
from fedta_app.training import client as local
from fedta_app.training.workspace import shared_workspace
from server_app import loop as server_loop
from server_app.app import app as server_app
from strategies.exchange import RoundCosts
from tests.server_app.failing import fail_for

SMALL = {
    "name": "test",
    "partition": "classes",
    "num-clients": 20,
    "num-classes-per-client": 2,
    "num-server-rounds": 4,
    "local-steps": 2,
    "lr": 0.02,
    "eval-every": 2,
    "eval-size": 100,
    "threads": 1,
    "weights": "random",
    "engine": "in-process",
}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder: Path, num_nodes: int = 20, **values: Any) -> dict[str, Any]:
    config = {**SMALL, "results-dir": str(folder), **values}
    run_in_process(server_app, client_app, config, num_nodes)
    return summary(folder, seed=config.get("seed", 0))


def summary(folder: Path, seed: int = 0) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"test/seed{seed}/summary.json").read_text())
    return loaded


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "test/seed0/metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.draws
def test_a_run_leaves_what_the_design_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path)
    directory = tmp_path / "test/seed0"
    names = {path.name for path in directory.iterdir()}
    assert names >= {
        "config.toml", "metrics.csv", "summary.json", "checkpoint", "tensorboard", "curves.png",
        "partition.png",
    }  # fmt: skip
    found = rows(tmp_path)
    assert tuple(found[0]) == COLUMNS
    assert [row["round"] for row in found] == ["0", "1", "2", "3", "4"]
    assert [bool(row["test_accuracy"]) for row in found] == [True, False, True, False, True]
    parameters = shared_workspace(
        RunConfig.from_mapping({**SMALL, "results-dir": str(tmp_path)}), None
    ).weights.vector.numel()
    assert {row["bytes_down"] for row in found[1:]} == {str(2 * 4 * parameters)}
    assert {row["bytes_up"] for row in found[1:]} == {str(2 * 4 * parameters)}
    assert result["status"] == "finished"
    assert result["weights"]["pretrained"] is False
    assert result["initial-weights-sha256"] != result["final-weights-sha256"]
    assert len(result["identity"]["data-sha256"]) == 64
    output = capsys.readouterr().out.splitlines()
    assert output[0] == output[-1] == f"run directory: {directory}"
    assert output[-2].startswith("finished: ")


def test_who_holds_what_is_drawn_after_the_first_round_that_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = tmp_path / "test/seed0/partition.png"
    drawn: list[int] = []
    save = server_loop.save_partition_figure

    def note_and_save(path: Path, counts: Any) -> None:
        drawn.append(len(rows(tmp_path)))
        save(path, counts)

    monkeypatch.setattr(server_loop, "save_partition_figure", note_and_save)
    run(tmp_path, **{"num-server-rounds": 2, "max-minutes": 1e-9})
    assert not figure.exists() and drawn == []
    run(tmp_path, **{"num-server-rounds": 2})
    assert figure.exists() and drawn == [2]  # the start, and round 1
    figure.unlink()
    run(tmp_path, **{"num-server-rounds": 2})
    assert drawn == [2]  # nothing of a finished run is done again


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    again = run(tmp_path / "b")
    other = run(tmp_path / "c", seed=1)
    key = "final-weights-sha256"
    assert first[key] == again[key]
    assert first[key] != other[key]
    assert first["identity"]["partition-sha256"] != other["identity"]["partition-sha256"]


def test_a_stopped_run_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = run(tmp_path / "unbroken")
    broken = tmp_path / "broken"
    train = local.train_steps

    def train_then_ask_to_stop(*args: Any, key: tuple[int, ...], **values: Any) -> float:
        if key[0] in (1, 3):
            (broken / "test/seed0/stop").touch()
        return train(*args, key=key, **values)

    monkeypatch.setattr(local, "train_steps", train_then_ask_to_stop)
    statuses = []
    for _ in range(3):
        result = run(broken, **{"checkpoint-every": 3})
        statuses.append((result["status"], result["reason"], result["final"]["round"]))
    assert statuses == [
        ("stopped", "interrupted", 1),
        ("stopped", "interrupted", 3),
        ("finished", "", 4),
    ]
    assert result["final-weights-sha256"] == unbroken["final-weights-sha256"]
    assert [session["rows"] for session in result["sessions"]] == [[0, 2], [2, 4], [4, 5]]
    columns = [column for column in COLUMNS if column not in COSTS]
    for ours, theirs in zip(rows(broken), rows(tmp_path / "unbroken"), strict=True):
        assert [ours[column] for column in columns] == [theirs[column] for column in columns]
    assert "resumed after train round 3" in capsys.readouterr().out


def test_max_minutes_stops_before_the_time_is_over(tmp_path: Path) -> None:
    result = run(tmp_path, **{"max-minutes": 1e-9})
    assert result["status"] == "stopped"
    assert result["reason"] == "max-minutes = 1e-09 is used up"
    assert run(tmp_path)["status"] == "finished"


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    monkeypatch.setattr(local, "train_steps", None)
    again = run(tmp_path)
    assert again["status"] == "finished"
    assert again["final-weights-sha256"] == first["final-weights-sha256"]
    assert len(rows(tmp_path)) == 5


def test_failed_clients_are_counted_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def first_of_each_round(key: tuple[int, ...]) -> bool:
        new = key[0] not in seen
        seen.append(key[0])
        return new

    fail_for(monkeypatch, first_of_each_round)
    assert run(tmp_path)["status"] == "finished"
    assert [(row["clients_ok"], row["clients_failed"]) for row in rows(tmp_path)[1:]] == [
        ("1", "1")
    ] * 4


def test_a_round_without_a_single_client_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for(monkeypatch, lambda key: key[0] == 2)
    with pytest.raises(RunError, match="no client finished round 2: ArithmeticError: it broke"):
        run(tmp_path)
    assert summary(tmp_path)["status"] == "failed"
    monkeypatch.undo()
    assert run(tmp_path)["final-weights-sha256"] == run(tmp_path / "b")["final-weights-sha256"]


def test_a_federation_of_the_wrong_size_is_told_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'add --federation-config "num-supernodes=20" to flwr'):
        run(tmp_path, num_nodes=2)
    with pytest.raises(ConfigError, match=r"or set clients-per-node = 7$"):
        run(tmp_path, num_nodes=3)
    with pytest.raises(ConfigError, match=r"to flwr run$"):
        run(tmp_path, num_nodes=30)


def test_without_num_clients_the_federation_decides(tmp_path: Path) -> None:
    result = run(tmp_path, num_nodes=7, **{"num-clients": 0, "partition": "dirichlet"})
    assert result["num-clients"] == 7


@pytest.mark.parametrize(
    ("clients_per_node", "num_nodes"),
    [(3, 7), *(pytest.param(*nodes, marks=pytest.mark.slow) for nodes in ((5, 4), (20, 1)))],
)
def test_nodes_that_stand_for_several_clients_change_no_bit(
    tmp_path: Path, clients_per_node: int, num_nodes: int
) -> None:
    masked = {
        "weights": "pretrained", "head": "ridge", "mask-rule": "least-sensitive",
        "mask-scope": "client", "calibration-rounds": 1,
    }  # fmt: skip
    together = run(
        tmp_path / "a", num_nodes=num_nodes, **masked, **{"clients-per-node": clients_per_node}
    )
    assert together["final-weights-sha256"] == run(tmp_path / "b", **masked)["final-weights-sha256"]
    assert together["num-clients"] == 20


def test_the_right_number_of_such_nodes_is_named(tmp_path: Path) -> None:
    said = 'num-clients = 20 with clients-per-node = 3 does not .* "num-supernodes=7"'
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, num_nodes=20, **{"clients-per-node": 3})


def test_such_nodes_decide_the_number_of_clients_that_is_left_open(tmp_path: Path) -> None:
    open_number = {"num-clients": 0, "partition": "dirichlet", "clients-per-node": 3}
    assert run(tmp_path, num_nodes=4, **open_number)["num-clients"] == 12


def test_other_data_under_the_same_name_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, **{"max-minutes": 1e-9})
    from server_app import loop

    monkeypatch.setattr(loop, "partition_digest", lambda partitions: "another")
    with pytest.raises(RunError, match="cannot be resumed: partition-sha256 changed"):
        run(tmp_path)


def test_another_precision_or_code_after_a_resume_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = local.train_steps

    def train_then_ask_to_stop(*args: Any, **values: Any) -> Any:
        (tmp_path / "test/seed0/stop").touch()
        return train(*args, **values)

    monkeypatch.setattr("fedta_app.device.cpu_kernels._cpuinfo", lambda: "")
    monkeypatch.setattr(local, "train_steps", train_then_ask_to_stop)
    codes = iter("abcd")  # looked at once in a session, when it begins
    monkeypatch.setattr("fedta_app.runs.session.code_facts", lambda _: {"sha256": next(codes)})
    assert run(tmp_path, precision="auto")["final"]["round"] == 1
    monkeypatch.setattr(local, "train_steps", train)
    monkeypatch.setattr("fedta_app.device.cpu_kernels._cpuinfo", lambda: "flags : avx512_bf16")
    result = run(tmp_path, precision="auto")
    said = "warning: precision was fp32 until now and is bf16 on this processor"
    assert said in capsys.readouterr().out
    assert [session["precision"] for session in result["sessions"]] == ["fp32", "bf16"]
    assert [session["code"]["sha256"] for session in result["sessions"]] == ["a", "b"]
    assert result["code"]["sha256"] == "b"


def test_a_run_from_before_a_column_existed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole")
    train = local.train_steps

    def train_then_ask_to_stop(*args: Any, key: tuple[int, ...], **values: Any) -> float:
        if key[0] == 2:
            (tmp_path / "test/seed0/stop").touch()
        return train(*args, key=key, **values)

    monkeypatch.setattr(local, "train_steps", train_then_ask_to_stop)
    assert run(tmp_path)["status"] == "stopped"
    checkpoints = tmp_path / "test/seed0/checkpoint"
    stored = load_checkpoint(checkpoints)
    assert stored is not None
    for row in stored.state["rows"]:
        for column in ADDED:
            del row[column]
    save_checkpoint(checkpoints, stored)
    assert run(tmp_path)["final-weights-sha256"] == whole["final-weights-sha256"]
    assert [bool(row["val_loss"]) for row in rows(tmp_path)] == [False, False, False, False, True]


def test_clients_with_processes_of_their_own_say_what_memory_they_took(tmp_path: Path) -> None:
    """As on Flower's engine; in-process, the server's process is all there is."""
    own = ("memory_mb", "client_memory_mb")
    run(tmp_path / "a")
    for row in rows(tmp_path / "a"):
        assert [bool(row[column]) for column in own] == [True, False]
    masked = {"head": "ridge", "mask-rule": "least-sensitive", "calibration-rounds": 1}
    run(tmp_path / "b", engine="flower", **masked)
    for row in rows(tmp_path / "b"):
        assert float(row["memory_mb"]) > 50
        assert bool(row["client_memory_mb"]) == (row["phase"] != "start")


def test_what_a_client_says_of_its_memory_is_a_number_or_nothing() -> None:
    costs = RoundCosts()
    costs.add_peaks({"client_memory_mb": 5.5, "client_gpu_memory_mb": [1.0], "seconds": 7})
    costs.add_peaks({"client_memory_mb": 4})
    assert costs.peaks == {"client_memory_mb": 5.5}
