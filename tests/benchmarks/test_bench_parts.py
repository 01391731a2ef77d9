"""The parts of a round: each moment is counted once; how long anything takes, no test asserts."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.bench_parts import clock as part_clock
from benchmarks.bench_parts import table
from benchmarks.bench_parts.clock import PARTS, REST, PartClock
from benchmarks.harness import jobs
from benchmarks.harness.contenders import Contender, Runner, Timing
from benchmarks.harness.jobs import Job


def test_each_moment_counts_for_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(part_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = PartClock()

    def inner() -> None:
        now[0] += 2
        with pytest.raises(ZeroDivisionError), clock.within("again"):
            now[0] += 4
            raise ZeroDivisionError

    owner = SimpleNamespace(inner=inner)
    clock.watch(owner, "inner", "inner")
    now[0] += 1
    with clock.within("outer"):
        now[0] += 8
        owner.inner()
        now[0] += 16
    now[0] += 32
    assert clock.read() == {REST: 1 + 32, "outer": 8 + 16, "inner": 2, "again": 4}


def test_every_function_that_is_timed_is_there() -> None:
    for functions in PARTS.values():
        for owner, name in functions:
            assert callable(getattr(owner, name, None)), f"{owner} has no {name}"


class Clockwork(Runner):
    """A runner whose contenders take these seconds, all of them in one part."""

    def __init__(self) -> None:
        self.left = {"parts": [2.0, 3.0, 4.0], "flower": [5.0, 5.0, 4.5]}

    def time(self, contender: Contender, rounds: int) -> Timing:
        took = self.left[contender.kind].pop(0)
        parts = {part: took if part == "optimizer" else 0.0 for part in PARTS}
        return Timing([took] * rounds, 1.0, [parts] * rounds)


def test_what_flower_adds_is_the_median_of_the_differences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = table.measure(Clockwork(), 1.0, repeats=3, rounds=2)
    assert found["parts"]["optimizer"] == found["in-process"] == 3.0
    assert (found["flower"], found["waiting"]) == (5.0, 2.0)
    capsys.readouterr()
    table.show({"all weights": found}, 3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith(("optimizer", "waiting"))] == [
        ["optimizer", "3.000", "100.0%"],
        ["waiting", "for", "Flower", "2.000", "66.7%"],
    ]


def test_one_repeat_is_not_kept_as_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main(["--repeats", "1", "--json", "x.json"])
    assert "--repeats 1 is no result that --json could keep" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_of_a_tiny_job_add_up_to_its_rounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny = Job("demo/fedavg", {"num-clients": 20, "local-steps": 1, "batch-size": 4}, threads=1)
    monkeypatch.setitem(jobs.JOBS, "demo", tiny)
    out = tmp_path / "parts.json"
    table.main(["--job", "demo", "--repeats", "2", "--rounds", "1", "--json", str(out)])
    for row in json.loads(out.read_text())["rows"].values():
        assert all(seconds > 0 for seconds in row["parts"].values()), row["parts"]
        for repeat in row["all"]:
            added = sum(repeat["parts"].values())
            assert added == pytest.approx(repeat["in-process"], rel=0.02, abs=0.005)
