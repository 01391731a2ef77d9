"""A simulation in which a client's process dies is started again, while that helps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import experiments.running.flower
from experiments.exit_status import ExitStatus
from experiments.running import launch as launching
from fedta_app.config import RunConfig
from fedta_app.runs.directory import PROCESS_DIED
from fedta_app.runs.records import write_summary

DIED = f"RunError: {PROCESS_DIED} (client 3; out of memory?)"


@pytest.mark.parametrize(
    ("ends", "starts", "status"),
    [
        # At which row each session began, and why it ended; "" is the end of the run.
        ([(0, "")], 1, ExitStatus.FINISHED),
        ([(0, DIED), (4, DIED), (9, "")], 3, ExitStatus.FINISHED),
        ([(0, DIED), (0, "")], 2, ExitStatus.FINISHED),
        ([(0, DIED), (4, DIED), (4, DIED), (4, "")], 3, ExitStatus.FAILED),
        ([(0, "RunError: no client finished round 1"), (4, "")], 1, ExitStatus.FAILED),
    ],
)
def test_it_goes_on_while_it_gets_further(
    ends: list[tuple[int, str]],
    starts: int,
    status: ExitStatus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left: Iterator[tuple[int, str]] = iter(ends)
    sessions: list[dict[str, Any]] = []
    resumed, minutes = [], []

    def run(config: RunConfig, **_: Any) -> None:
        row, reason = next(left)
        sessions.append({"rows": [row, row + 5]})
        resumed.append(config.resume)
        minutes.append(config.max_minutes)
        ended = {"status": "failed" if reason else "finished", "reason": reason}
        write_summary(tmp_path / "run/seed0", {**ended, "sessions": sessions})

    monkeypatch.setattr(experiments.running.flower, "run_on_flower", run)
    config = RunConfig(name="run", engine="flower", results_dir=str(tmp_path), resume=False)
    (tmp_path / "run/seed0").mkdir(parents=True)
    assert launching.launch(config, client_cpus=1, client_gpus=0.0) == status
    assert resumed == [False, *[True] * (starts - 1)]
    assert capsys.readouterr().out.count("going on from the last checkpoint") == starts - 1
    assert minutes == [0.0] * starts  # no limit


def test_it_has_the_minutes_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, minutes = [0.0], []
    monkeypatch.setattr(launching.time, "monotonic", lambda: clock[0])

    def run(config: RunConfig, **_: Any) -> None:
        minutes.append(config.max_minutes)
        sessions = [{"rows": [number, number + 1]} for number in range(len(minutes))]
        write_summary(tmp_path / "run/seed0", {"reason": DIED, "sessions": sessions})
        clock[0] += 240.0

    monkeypatch.setattr(experiments.running.flower, "run_on_flower", run)
    config = RunConfig(name="run", engine="flower", results_dir=str(tmp_path), max_minutes=10.0)
    (tmp_path / "run/seed0").mkdir(parents=True)
    assert launching.launch(config, client_cpus=1, client_gpus=0.0) == ExitStatus.FAILED
    assert minutes == [10.0, 6.0, 2.0]
