"""A simulation that breaks off is started again, while that helps: with records as runs write them.

The engine in this process stands for Flower's, and raises what the server raises there.
"""

import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import experiments.running.flower
from experiments.exit_status import ExitStatus
from experiments.running import launch as launching
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.runs.directory import PROCESS_DIED, STOP_FILE
from fedta_app.runs.records import read_summary, write_summary
from fedta_app.runs.session import RunSession

VALUES = {
    "num-clients": 3, "partition": "iid", "fraction-train": 1.0, "num-server-rounds": 4,
    "local-steps": 1, "eval-every": 4, "eval-size": 20, "threads": 1, "head": "random",
    "measure-test": "never", "engine": "flower", "name": "run", "cache-dir": "",
}  # fmt: skip
AGAIN = "it is started again from the last checkpoint"
DIED = RunError(f"{PROCESS_DIED} (client 3; out of memory?)")


class Killed(BaseException):
    """The end of the simulation's process, which writes nothing more."""


def config_of(folder: Path, **values: Any) -> RunConfig:
    return RunConfig.from_mapping({**VALUES, "results-dir": str(folder), **values})


class Starts:
    """Starts of a simulation, each of which may die before it has added a row of a round."""

    def __init__(self, patch: pytest.MonkeyPatch, dies: Callable[[int, int], BaseException | None]):
        self.configs: list[RunConfig] = []
        add = RunSession.add

        def add_or_die(session: RunSession, row: Any, state: Any) -> None:
            if error := dies(len(self.configs), row.round):
                raise error
            add(session, row, state)

        patch.setattr(RunSession, "add", add_or_die)
        patch.setattr(experiments.running.flower, "run_on_flower", self._start)

    def _start(self, config: RunConfig, **_: Any) -> None:
        self.configs.append(config)
        assert len(self.configs) < 9, "for ever"
        try:
            launching.run_here(config)
        except RunError:
            pass  # as on Flower's engine, which says so in its log alone
        except Killed:
            folder = Path(config.results_dir) / "run/seed0"  # as it was before the process died
            write_summary(folder, {**read_summary(folder), "status": "running", "reason": ""})


@pytest.mark.parametrize(
    ("dies", "starts", "status", "error"),
    [
        (lambda start, row: start == 1 and row == 3, 2, ExitStatus.FINISHED, Killed()),
        (lambda start, row: start < 4 and row == start, 4, ExitStatus.FINISHED, DIED),
        (lambda start, row: row == 3, 3, ExitStatus.FAILED, DIED),  # the third comes no further
        (lambda start, row: row == 0, 2, ExitStatus.FAILED, Killed()),  # without a checkpoint
    ],
    ids=["once", "in every round", "in round 3", "at the start"],
)
def test_it_is_started_again_while_it_comes_further(
    dies: Callable[[int, int], bool],
    starts: int,
    status: ExitStatus,
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = Starts(monkeypatch, lambda start, row: error if dies(start, row) else None)
    config = config_of(tmp_path, resume=False)
    assert launching.launch(config, client_cpus=1, client_gpus=0.0) == status
    assert [each.resume for each in found.configs] == [False, *[True] * (starts - 1)]
    assert capsys.readouterr().out.count(AGAIN) == starts - 1
    if status == ExitStatus.FINISHED:
        ended = read_summary(tmp_path / "run/seed0")["final-weights-sha256"]
        monkeypatch.undo()
        launching.run_here(config_of(tmp_path, name="whole"))
        assert ended == read_summary(tmp_path / "whole/seed0")["final-weights-sha256"]


def test_another_error_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Starts(monkeypatch, lambda start, row: RunError("no client finished") if row else None)
    status = launching.launch(config_of(tmp_path), client_cpus=1, client_gpus=0.0)
    assert (status, len(found.configs)) == (ExitStatus.FAILED, 1)


def test_a_start_that_does_not_open_its_records_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Starts(monkeypatch, lambda start, row: DIED if row else None)
    run = experiments.running.flower.run_on_flower
    starts = itertools.count()

    def first_only(config: RunConfig, **options: Any) -> None:
        if next(starts) == 0:
            run(config, **options)

    monkeypatch.setattr(experiments.running.flower, "run_on_flower", first_only)
    status = launching.launch(config_of(tmp_path), client_cpus=1, client_gpus=0.0)
    assert (status, len(found.configs), next(starts)) == (ExitStatus.FAILED, 1, 2)


def test_it_has_the_minutes_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Starts(monkeypatch, lambda start, row: DIED if row == start else None)
    run = experiments.running.flower.run_on_flower
    clock = [0.0]

    def slowly(config: RunConfig, **options: Any) -> None:
        run(config, **options)
        clock[0] += 240.0

    monkeypatch.setattr(experiments.running.flower, "run_on_flower", slowly)
    monkeypatch.setattr(launching, "time", type("Clock", (), {"monotonic": lambda: clock[0]}))
    config = config_of(tmp_path, **{"max-minutes": 10.0})
    assert launching.launch(config, client_cpus=1, client_gpus=0.0) == ExitStatus.STOPPED
    assert [each.max_minutes for each in found.configs] == [10.0, 6.0, 2.0]


def test_a_second_ctrl_c_leaves_no_request_to_stop(tmp_path: Path) -> None:
    """The next start, by `flwr run` or in a notebook, would take it for one of its own."""
    summary = tmp_path / "summary.json"
    with (
        pytest.raises(KeyboardInterrupt),
        launching._stop_on_interrupt(tmp_path, {}, threading.Event()),
    ):
        write_summary(tmp_path, {"status": "running", "sessions": [{}], "final": None})
        os.kill(os.getpid(), signal.SIGINT)
        assert (tmp_path / STOP_FILE).exists() and summary.exists()
        os.kill(os.getpid(), signal.SIGINT)
    assert not (tmp_path / STOP_FILE).exists()
