"""TensorBoard's events, and services that are optional, resumed and never needed."""

import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from experiments.__main__ import main
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.runs.loggers import Loggers, TensorBoard, check_logger, open_loggers
from fedta_app.runs.metrics import Row
from fedta_app.training.workspace import shared_workspace

ROWS = [
    *(Row(number, "head", seconds=number) for number in range(1, 8)),
    Row(1, "calibrate", seconds=1.0),
    Row(0, "start", val_accuracy=0.1, val_loss=2.3),
    *(Row(number, "train", 1.0, 0.1 * number, val_loss=2.0) for number in range(1, 5)),
]
QUICK = {
    "name": "table/cell", "engine": "centralized", "num-server-rounds": 2, "local-steps": 1,
    "eval-every": 1, "eval-size": 20, "weights": "random", "threads": 1,
}  # fmt: skip


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def steps(events: EventAccumulator, tag: str) -> list[int]:
    return [event.step for event in events.Scalars(tag)]


def test_events_of_training_are_against_its_rounds_from_0_on(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path, [])
    for row in ROWS:
        log.add(row)
    log.close()
    events = read(tmp_path)
    assert steps(events, "train/val_accuracy") == steps(events, "train/val_loss") == [0, 1, 2, 3, 4]
    assert steps(events, "train/train_loss") == [1, 2, 3, 4]  # nothing is trained in round 0
    assert steps(events, "head/seconds") == list(range(1, 8))
    assert steps(events, "calibrate/seconds") == [1]
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("start")]
    values = [event.value for event in events.Scalars("train/val_accuracy")]
    assert values == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.4])


def test_a_resumed_session_keeps_what_counts_and_nothing_else(tmp_path: Path) -> None:
    """Rounds 3 and 4 are lost and done again; no round of another phase goes with them."""
    before = SummaryWriter(str(tmp_path))  # as an earlier release wrote: by the number of the row
    before.add_scalar("train/val_accuracy", 0.9, 9)
    before.close()
    first = TensorBoard(tmp_path, [])
    for row in ROWS:
        first.add(row)
    first.close()
    watching = read(tmp_path)
    second = TensorBoard(tmp_path, ROWS[:-2])
    second.add(Row(3, "train", 1.0, 0.7))
    second.close()
    watching.Reload()
    for events in (read(tmp_path), watching):
        assert steps(events, "train/val_accuracy") == [0, 1, 2, 3]
        assert events.Scalars("train/val_accuracy")[-1].value == pytest.approx(0.7)
        assert steps(events, "head/seconds") == list(range(1, 8))


class Service(types.ModuleType):
    """Stands for wandb or trackio, and remembers what it was told."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], dict[str, Any]]] = []
        self.axes: dict[str, str] = {}
        self.finished = 0

    def init(self, **options: Any) -> "Service":
        self.begun.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log(self, figures: dict[str, float], **options: Any) -> None:
        self.logged.append((figures, options))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    return found


def run(folder: Path, **values: Any) -> dict[str, Any]:
    shared_workspace.cache_clear()
    run_centralized(RunConfig.from_mapping({**QUICK, "results-dir": str(folder), **values}))
    summary: dict[str, Any] = json.loads((folder / "table/cell/seed0/summary.json").read_text())
    return summary


def test_a_service_gets_every_row_and_a_resumed_session_goes_on_with_its_run(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **options: None)
    name = service.__name__
    assert run(tmp_path, logger=name, **{"max-minutes": 1e-9})["status"] == "stopped"
    logged = run(tmp_path, logger=name)
    assert logged["status"] == "finished"
    assert service.finished == 2
    rounds = [
        options.get("step", figures.get("train/round")) for figures, options in service.logged
    ]
    assert rounds == [0, 1, 2]
    assert [figures["train/val_loss"] for figures, _ in service.logged][-1] == (
        logged["final"]["val_loss"]
    )
    first, second = service.begun
    key = "id" if name == "wandb" else "name"
    assert first[key] == second[key] == f"table-cell-seed0-{logged['sessions'][0]['id']}"
    assert first["resume"] == "allow" and first["project"] == "fedta"
    assert first["config"]["num-server-rounds"] == 2
    assert service.axes == ({"train/*": "train/round"} if name == "wandb" else {})
    monkeypatch.setitem(sys.modules, name, None)  # an import of it would fail
    assert run(tmp_path / "b")["final-weights-sha256"] == logged["final-weights-sha256"]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_service_that_fails_costs_one_warning(
    fails: str, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("no route to the service\nand more")

    monkeypatch.setattr(service, fails, fail)
    loggers = open_loggers(RunConfig(logger=service.__name__), tmp_path, [], "0")
    for row in ROWS:
        loggers.add(row)
    loggers.close()
    assert capsys.readouterr().out == (
        f"warning: {service.__name__} failed and gets no more figures in this session, metrics.csv "
        "has them all (ConnectionError: no route to the service)\n"
    )
    assert steps(read(tmp_path / "tensorboard"), "train/val_loss") == [0, 1, 2, 3, 4]


def test_without_its_package_a_logger_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = ["run", "demo/fedavg", "--results-dir", str(tmp_path / "runs")]
    assert main([*arguments, "--engine", "in-process", "--set", "logger=wandb"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "logger = 'wandb' is not allowed here: its package cannot be imported" in error
    assert "pip install wandb, or set logger = 'none'" in error
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError, match="logger = 'wandb' is not allowed here"):
        run(tmp_path, logger="wandb")  # as by `flwr run`, which has no preflight
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights & Biases writes into ./wandb, which Python would import as an empty package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_logger(RunConfig(logger="wandb"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_one_logger_does_not_take_another_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Kept:
        rows: Sequence[Row] = ()

        def add(self, row: Row) -> None:
            self.rows = [*self.rows, row]

        def close(self) -> None:
            pass

    kept, failing = Kept(), Service("failing")
    loggers = Loggers({"failing": lambda: failing.missing, "kept": lambda: kept})  # type: ignore[attr-defined]
    loggers.add(ROWS[0])
    loggers.close()
    assert list(kept.rows) == ROWS[:1]
    assert capsys.readouterr().out.count("warning: failing failed") == 1


def test_no_logger_swallows_a_ctrl_c(tmp_path: Path, service: Service) -> None:
    def interrupted(**options: Any) -> Service:
        raise KeyboardInterrupt

    service.init = interrupted  # type: ignore[method-assign]
    config = RunConfig(logger=service.__name__)
    with pytest.raises(KeyboardInterrupt):
        open_loggers(config, tmp_path, [], "0")
