"""The long trials, in short; and that they see a fault."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.endurance import (
    checkpoints,
    configurations,
    crashes,
    faults,
    kills,
    matrix,
    replies,
    soak,
)
from experiments.exit_status import ExitStatus
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from strategies import reading

linux = pytest.mark.skipif(sys.platform != "linux", reason="it needs /proc and fork")


def result_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_odd_configurations(tmp_path: Path) -> None:
    assert configurations.main(["--number", "6", "--json", str(tmp_path / "x.json")]) == 0
    found = result_of(tmp_path / "x.json")
    assert sum(found["outcomes"].values()) == 6 and not found["faults"]


@pytest.mark.parametrize("fault", ["taken as another value", "no sentence", "a traceback"])
def test_a_configuration_that_ends_otherwise_is_a_fault(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configurations, "odd_values", lambda generator: {"num-clients": 7})

    def accept(values: dict[str, Any]) -> RunConfig:
        if fault == "no sentence":
            raise ConfigError("two\nlines of text")
        if fault == "a traceback":
            raise KeyError("num-clients")
        return RunConfig(num_clients=8)

    monkeypatch.setattr(configurations.RunConfig, "from_mapping", staticmethod(accept))
    assert configurations.main(["--number", "1", "--json", str(tmp_path / "x.json")]) == 1
    assert len(result_of(tmp_path / "x.json")["faults"]) == 1


@pytest.mark.slow  # in `make test` every fault of the matrix, below, stands for them
def test_broken_replies(tmp_path: Path) -> None:
    assert replies.main(["--number", "3", "--json", str(tmp_path / "x.json")]) == 0
    found = result_of(tmp_path / "x.json")
    counts = [count for kinds in found["matrix"].values() for count in kinds.values()]
    assert sum(counts) == found["replies"] >= 3 and not found["faults"]


def test_a_broken_reply_that_is_taken_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is gone: the number of examples of a client."""
    monkeypatch.setattr(replies, "KINDS", ({"strategy": "fedavg"},))
    monkeypatch.setattr(replies, "SHARE", 0.5)
    damage = replies.damage

    def more_examples(reply: Any, generator: Any) -> str:
        metrics = reply.content.metric_records.get("metrics")
        if metrics is None or "num-examples" not in metrics:
            return damage(reply, generator)
        metrics["num-examples"] = 10**15
        return "a lot of examples"

    monkeypatch.setattr(replies, "damage", more_examples)
    assert replies.main(["--number", "3"]) == 0
    found = reading.check_training

    def trusting(reply: Any, *, most_examples: int, **steps: Any) -> Any:
        return found(reply, most_examples=10**16, **steps)

    monkeypatch.setattr(reading, "check_training", trusting)
    assert replies.main(["--number", "3"]) == 1


QUICK = [("wire", "training")]  # the other phases and Flower's engine are for slow tests


@pytest.mark.parametrize(
    ("engine", "phase"),
    [
        pytest.param(engine, phase, marks=() if (engine, phase) in QUICK else pytest.mark.slow)
        for engine in matrix.ENGINES
        for phase in matrix.PHASES
    ],
)
def test_every_fault_of_a_reply(engine: str, phase: str, tmp_path: Path) -> None:
    asked = ["--engines", engine, "--phases", phase, "--json", str(tmp_path / "x.json")]
    if engine == "simulation":  # in a process of its own: Ray leaves its children to this one
        words = [sys.executable, "-m", "benchmarks.endurance.matrix", *asked]
        subprocess.run(words, cwd=Path(__file__).resolve().parents[2], check=True)
    else:
        assert matrix.main(asked) == 0
    found = result_of(tmp_path / "x.json")
    cells = found["matrix"][engine][phase]
    assert cells.keys() == set(faults.FAULTS)
    assert cells[faults.RAISED] == "failed" and cells["too short"].startswith("rejected: ")
    assert (cells["a number of examples"][:8] == "rejected") == (phase in faults.WITH_EXAMPLES)


def test_a_fault_that_is_taken_is_seen_in_the_matrix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that is gone: the number of examples of a client."""
    found = reading.check_training

    def trusting(reply: Any, *, most_examples: int, **steps: Any) -> Any:
        return found(reply, most_examples=10**16, **steps)

    monkeypatch.setattr(reading, "check_training", trusting)
    assert matrix.main(["--engines", "memory", "--phases", "training"]) == 1
    assert "a number of examples: FAULT" in capsys.readouterr().out


def test_a_fault_that_ends_the_run_is_seen_in_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("num-examples")

    monkeypatch.setattr(reading, "check_training", broken)
    assert matrix.main(["--engines", "memory", "--phases", "training"]) == 1


@pytest.mark.parametrize("number", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_checkpoints(number: int, tmp_path: Path) -> None:
    assert checkpoints.main(["--number", str(number), "--json", str(tmp_path / "x.json")]) == 0
    found = result_of(tmp_path / "x.json")
    counts = [count for ends in found["outcomes"].values() for count in ends.values()]
    assert sum(counts) == number and not found["faults"]


def test_a_damaged_checkpoint_that_is_taken_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, end_of = checkpoints.start, checkpoints.end_of
    ends = {
        "0": (ExitStatus.FINISHED, ""),  # at other weights
        "1": (ExitStatus.FAILED, "no sentence"),
        "2": (ExitStatus.FAILED, "failed: x\nTraceback (most recent call last):"),
    }

    def other_end(run: Path) -> Any:
        return end_of(run) if run.parents[1].name == "whole" else ("0" * 64, [], [])

    monkeypatch.setattr(
        checkpoints, "start", lambda results: ends.get(results.name) or start(results)
    )
    monkeypatch.setattr(checkpoints, "end_of", other_end)
    assert checkpoints.main(["--number", "3", "--json", str(tmp_path / "x.json")]) == 1
    assert [fault["number"] for fault in result_of(tmp_path / "x.json")["faults"]] == [0, 1, 2]


@linux
@pytest.mark.parametrize("every", [200, pytest.param(10, marks=pytest.mark.slow)])
def test_death_at_operations_on_files(every: int, tmp_path: Path) -> None:
    assert crashes.main(["--every", str(every), "--json", str(tmp_path / "x.json")]) == 0
    found = result_of(tmp_path / "x.json")
    assert found["operations"] > 150 and not found["faults"]
    assert sum(found["tried"].values()) >= found["operations"] / every


@linux
def test_a_death_that_is_none_and_what_it_leaves_are_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play = crashes.play
    monkeypatch.setattr(crashes, "play", lambda results, log, *where: play(results, log))
    assert crashes.main(["--every", "1000"]) == 1
    assert "it did not die" in capsys.readouterr().out
    (status, said), expected = crashes.start(tmp_path), crashes.end_of(tmp_path / "run/seed0")
    assert status == ExitStatus.FINISHED, said
    (tmp_path / "run/seed0/blobs/.x.tmp").touch()
    monkeypatch.setattr(crashes, "start", lambda results: (status, said))
    assert crashes.fault(tmp_path, expected) == "it left .x.tmp"
    (tmp_path / "run/seed0/curves.png").unlink()
    found = crashes.fault(tmp_path, expected)
    assert found.startswith("it ended at other weights, rows or files") and "curves" not in found
    monkeypatch.setattr(crashes, "start", lambda results: (status, "Traceback"))
    assert crashes.fault(tmp_path, expected).startswith("it ended with FINISHED: Traceback")


@pytest.mark.slow
def test_kills(tmp_path: Path) -> None:
    assert kills.main(["--kills", "5", "--json", str(tmp_path / "x.json")]) == 0
    found = result_of(tmp_path / "x.json")
    assert found["kills"] >= 5 and found["runs"] >= 1 and not found["wrong"]


def test_growth_compares_the_second_hundred_rounds_with_the_last() -> None:
    rounds = range(1, 1001)
    metrics = pd.DataFrame(
        {
            "phase": ["start", *["train"] * 1000],
            "seconds": [9.0, *(1.0 for _ in rounds)],
            "memory_mb": [0.0, *(100.0 + number for number in rounds)],
            "client_memory_mb": [None] * 1001,
        }
    )
    found = soak.growth(metrics)
    assert found.keys() == {"seconds", "memory_mb"}
    assert found["seconds"]["ratio"] == 1
    assert found["memory_mb"] == {"after-100": 250.5, "end": 1050.5, "ratio": 1050.5 / 250.5}
    with pytest.raises(SystemExit):
        soak.main(["--rounds", "200"])
