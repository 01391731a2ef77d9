"""What a run says while it works for long, and Ctrl-C before it has begun."""

import re
import signal
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.running import launch
from fedta_app import progress
from fedta_app.config import RunConfig
from fedta_app.progress import Count

SMALL = {
    "num-server-rounds": 1, "eval-size": 40, "local-steps": 2, "num-clients": 10,
    "fraction-train": 0.2, "calibration-rounds": 2, "calibration-examples": 40,
}  # fmt: skip


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of counted work seems to take a minute."""
    now = 0.0
    add = Count.add

    def slowly(count: Count, number: int = 1) -> None:
        nonlocal now
        add(count, number)
        now += 60.0
        progress._reporter.look()

    monkeypatch.setattr(Count, "add", slowly)
    monkeypatch.setattr(progress._reporter, "_clock", lambda: now)


def said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str, *more: str
) -> dict[str, list[str]]:
    """Return the numbers and units that each phase reported, by phase."""
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    main(["run", preset, *sets, *more, "--results-dir", str(tmp_path)])
    found: dict[str, list[str]] = {}
    # What is not committed while somebody works on the checkout is warned of.
    lines = [
        line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning: ")
    ]
    assert lines[0] == lines[-1] and lines[0].startswith("run directory: ")
    for line in lines:
        if match := re.fullmatch(r"(\w+( round \d)?): (\d+ of \d+ .*), \d+:\d\d:\d\d left", line):
            found.setdefault(match[1], []).append(match[3])
    return found


@pytest.mark.usefixtures("slow_clock")
def test_every_long_phase_of_a_federation_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(tmp_path, capsys, "demo/masked", "--engine", "in-process",
                 "--set=task-figures=true")  # fmt: skip
    assert "1 of 2 clients" in found["head round 1"]
    assert "140 of 140 images" in found["head round 5"]  # validation chooses the ridge
    for number in (1, 2):
        assert "5 of 10 clients" in found[f"calibrate round {number}"]
    assert "40 of 40 images" in found["start"]
    assert {"1 of 2 clients", "40 of 40 images", "3 of 8 scales of the task vector"} <= set(
        found["train"]
    )


@pytest.mark.usefixtures("slow_clock")
def test_every_long_phase_of_a_baseline_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set=head=ridge", "--set=mask-rule=least-sensitive"]
    found = said(tmp_path, capsys, "digits/centralized", *sets)
    assert "500 of 1260 images" in found["head"]
    assert "32 of 40 images" in found["calibrate"]
    assert "40 of 40 images" in found["start"]
    assert "1 of 2 steps" in found["train"]


def test_ctrl_c_before_the_first_round_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no round to wait for, and no checkpoint to write."""

    def starting(config: RunConfig) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(launch, "run_here", starting)
    arguments = ["run", "demo", "--engine", "in-process", "--results-dir", str(tmp_path)]
    assert main(arguments) == ExitStatus.INTERRUPTED
    output = capsys.readouterr().out
    assert "stopping after" not in output
    assert output.count("interrupted") == 1
    assert not (tmp_path / "demo/fedavg/seed0/stop").exists()
    assert not (tmp_path / "demo/masked/seed0/metrics.csv").exists()
