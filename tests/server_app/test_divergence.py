"""Training that diverges in its very last step fails; the checkpoint before it stays."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from experiments.running.launch import ExitStatus, attempt
from fedta_app.algorithms import algorithms, reads
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.training.workspace import shared_workspace
from server_app.app import app as server_app

SMALL = {
    "name": "test",
    "num-clients": 4,
    "fraction-train": 0.5,
    "num-server-rounds": 2,
    "local-steps": 1,
    "batch-size": 4,
    "lr": 0.03,
    "weight-decay": 50.0,
    "eval-size": 20,
    "task-figures": True,
    "threads": 1,
    "engine": "in-process",
}
HUGE = 3e38  # times a weight and the decay, more than float32 holds
MASKED = {"head": "ridge", "head-fraction": 0.1, "mask-rule": "random"}
CENTRAL = {"engine": "centralized"}


def config(folder: Path, **values: Any) -> RunConfig:
    return RunConfig.from_mapping({**SMALL, "results-dir": str(folder), **values})


def run(folder: Path, **values: Any) -> None:
    shared_workspace.cache_clear()
    found = config(folder, **values)
    if found.engine == "centralized":
        run_centralized(found)
    else:
        run_in_process(server_app, client_app, found.to_mapping(), found.num_clients)


def failed_cleanly(folder: Path, phases: list[str]) -> bool:
    """Say whether the run failed, with rows of these phases, and all that it saved is finite."""
    path = folder / "test/seed0"
    with (path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    saved = [load_file(file) for file in path.glob("checkpoint/step-*/weights.safetensors")]
    summary = json.loads((path / "summary.json").read_text())
    return (
        summary["status"] == "failed"
        and summary["reason"].startswith("RunError: training diverged in round ")
        and [row["phase"] for row in rows] == phases
        and len(saved) == min(len(rows), 2)
        and all(bool(t.isfinite().all()) for tensors in saved for t in tensors.values())
    )


@pytest.fixture
def huge_at_last(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which the last round has a huge learning rate."""

    def change() -> None:
        for place in ("fedta_app.pace.pace", "fedta_app.centralized"):
            monkeypatch.setattr(f"{place}.learning_rate", lambda c, r, *_: HUGE if r == 2 else c.lr)

    return change


@pytest.mark.parametrize("strategy", algorithms())
def test_clients_that_diverge_in_the_last_step(
    tmp_path: Path, strategy: str, huge_at_last: Callable[[], None]
) -> None:
    huge_at_last()
    with pytest.raises(RunError, match=r"training diverged in round 2 \((client . sent|test_loss)"):
        run(tmp_path, strategy=strategy)
    assert failed_cleanly(tmp_path, ["start", "train"])


@pytest.mark.parametrize(
    ("field", "strategy"),
    [(f, s) for f in ("server_lr", "server_scale") for s in algorithms() if f in reads(s)],
)
def test_a_server_that_diverges_in_the_last_step(tmp_path: Path, strategy: str, field: str) -> None:
    values = {"strategy": strategy, field.replace("_", "-"): HUGE, "num-server-rounds": 1}
    values |= {"server-beta1": 0.0}
    with pytest.raises(
        RunError, match=r"training diverged in round 1 \((server/weights|test_loss)"
    ):
        run(tmp_path, **values)
    assert failed_cleanly(tmp_path, ["start"])


@pytest.mark.parametrize("values", [{}, MASKED], ids=["dense", "masked"])
@pytest.mark.parametrize("engine", ["in-process", "centralized"])
def test_every_engine_with_and_without_a_mask(
    tmp_path: Path, values: dict[str, Any], engine: str, huge_at_last: Callable[[], None]
) -> None:
    before = ["head"] * (1 if engine == "centralized" else 2) + ["calibrate"] if values else []
    huge_at_last()
    with pytest.raises(RunError, match="training diverged in round 2"):
        run(tmp_path, **values, engine=engine)
    assert failed_cleanly(tmp_path, [*before, "start", "train"])


def test_the_command_that_continues_it_fails_again_and_can_be_mended(
    tmp_path: Path, huge_at_last: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"client_cpus": 1, "client_gpus": 0.0}
    with monkeypatch.context():
        huge_at_last()
        for _ in range(2):
            assert attempt(config(tmp_path), **options) == ExitStatus.FAILED
            assert failed_cleanly(tmp_path, ["start", "train"])
    monkeypatch.undo()
    assert attempt(config(tmp_path), **options) == ExitStatus.FINISHED


def test_a_checkpoint_that_is_not_finite_is_not_finished(
    tmp_path: Path, huge_at_last: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As releases left it that did not check the last step."""
    huge_at_last()
    with monkeypatch.context() as old:
        old.setattr("fedta_app.runs.loop._not_finite", lambda state: iter(()))
        old.setattr("fedta_app.runs.loop._check_figures", lambda row: None)
        run(tmp_path, **CENTRAL)
    with pytest.raises(RunError, match="training diverged in round 2"):
        run(tmp_path, **CENTRAL)


def test_weights_that_are_finite_and_give_no_finite_loss(
    tmp_path: Path, huge_at_last: Callable[[], None]
) -> None:
    huge_at_last()
    with pytest.raises(RunError, match=r"training diverged in round 2 \(test_loss nan"):
        run(tmp_path, **CENTRAL, **{"weight-decay": 0.0, "momentum": 0.0, "lr": 1e-3})
    assert failed_cleanly(tmp_path, ["start", "train"])


def test_heads_that_diverge(tmp_path: Path) -> None:
    probe = {"head": "probe", "probe-rounds": 1, "probe-lr": HUGE, "weight-decay": 1e3}
    with pytest.raises(RunError, match=r"training diverged in round 1 \(client 0 sent"):
        run(tmp_path, **probe)
    assert failed_cleanly(tmp_path, [])
    for engine in ("in-process", "centralized"):
        with pytest.raises(RunError, match="the ridge head is not finite"):
            run(tmp_path / engine, **MASKED, **{"head-temperature": 1e-300}, engine=engine)
