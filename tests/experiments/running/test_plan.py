"""What a table will take: the arithmetic by hand, and the command on digits."""

import re
from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.running import plan as planning
from experiments.running import workers
from experiments.running.cells import Progress, State, make_cells
from experiments.running.cost import Estimate, Forecast, count_up
from experiments.running.plan import print_plan
from experiments.running.presets import load_table, select, tables
from experiments.running.scales import scales
from experiments.running.timing import Parts, short_run
from fedta_app.config import RunConfig

PARTS = Parts(
    setup=1, row=0.1, round=2, probe_round=0.5, feature_image=0.01, score_image=0.2,
    evaluation_image=0.02, mask=3, images=(900, 100, 50),
)  # fmt: skip
BASE = {"num-clients": 10, "num-server-rounds": 20, "eval-every": 5, "measure-test": "end"}
MASKED = {"head": "ridge", "mask-rule": "least-sensitive", "calibration-rounds": 2}


def estimate(**values: object) -> Estimate:
    return count_up(RunConfig.from_mapping({**BASE, **values}), PARTS)


def test_rounds_and_measurements_are_counted() -> None:
    dense = estimate()
    assert dense.train == pytest.approx(20 * 2.1 + 0.02 * (4 * 100 + 50))
    assert dense.start == pytest.approx(1 + 0.02 * 100)
    assert (dense.head, dense.calibrate) == (0, 0)
    scaled = estimate(**{"task-figures": True, "fraction-train": 0.2})
    assert scaled.train == pytest.approx(dense.train + 0.02 * (8 * 100 + 2 * 5 * 100))
    compared = {"interference-every": 8, "fraction-train": 0.2}  # in rounds 1, 9 and 17
    matrix = 0.02 * (3 * 2 * 90 + 100)  # two clients' 90 images under two updates and under none
    assert estimate(**compared).train == pytest.approx(dense.train + 3 * matrix)
    ridge = estimate(**compared, head="ridge")  # which is solved afresh
    solved = 0.01 * 1000 + 0.02 * 100
    assert ridge.train == pytest.approx(dense.train + 3 * (matrix + solved))
    always = estimate(**{"measure-test": "always", "eval-size": 40})
    assert always.train == pytest.approx(20 * 2.1 + 0.02 * (4 * 40 + 5 * 40))


def test_heads_and_masks_are_counted_by_image() -> None:
    ridge = estimate(**MASKED)
    assert ridge.head == pytest.approx(0.01 * 1000)
    assert ridge.calibrate == pytest.approx(2 * (0.2 * 900 + 3))
    few = estimate(**MASKED, **{"calibration-fraction": 0.2, "calibration-examples": 30})
    assert few.calibrate == pytest.approx(2 * (0.2 * 2 * 30 + 3))
    own = estimate(**MASKED, **{"mask-scope": "client", "calibration-fraction": 0.2})
    assert own.calibrate == pytest.approx(2 * (0.2 * 900 + 10 * 3))
    server = estimate(**MASKED, **{"mask-scope": "server"})
    assert server.calibrate == pytest.approx(2 * (0.2 * 100 + 3))
    central = estimate(**MASKED, engine="centralized")
    assert central.calibrate == pytest.approx(2 * (0.2 * 900 + 3))
    assert estimate(**MASKED | {"mask-rule": "random"}).calibrate == pytest.approx(3)
    refreshed = estimate(**MASKED, **{"head-refresh": 8})
    assert refreshed.train - ridge.train == pytest.approx(2 * 0.01 * 1000)
    sampled = {"head-refresh": 8, "head-refresh-clients": "sampled", "fraction-train": 0.2}
    assert estimate(**MASKED, **sampled).train - ridge.train == pytest.approx(2 * 0.01 * 280)
    probe = estimate(**MASKED | {"head": "probe"})
    assert probe.head == pytest.approx(20 * (0.5 + 0.1))


@pytest.mark.parametrize("scale", ["", *scales()])
def test_a_few_rounds_of_every_preset_can_be_timed(scale: str) -> None:
    for name in tables():
        for preset in load_table(name, scale).presets:
            short, _ = short_run(preset.config({}), 1000)
            assert short.num_server_rounds == 4
            assert (short.partition == "natural") == (preset.values.get("partition") == "natural")


@pytest.mark.parametrize(
    "more",
    [
        {"head-refresh": 2}, {"personal-ridge": 1.0}, {"secure-aggregation": True},
        {"attackers": 0.1, "attack": "head-labels"}, {"attackers": 0.1, "attack": "scores"},
        {"engine": "centralized", "head-refresh": 2}, {"interference-every": 2},
        {"update-bound": 1.0}, {"strategy": "fedmedian", "mask-rule": "none"},
        {"dp-noise": 1.0, "update-bound": 1.0, "update-bound-kind": "fixed"},
    ],
)  # fmt: skip
def test_a_few_rounds_of_what_needs_a_ridge_head_can_be_timed(more: dict[str, object]) -> None:
    masked = {**MASKED, "num-clients": 100, "fraction-train": 0.1}
    short, _ = short_run(RunConfig.from_mapping({**masked, **more}), 1000)
    assert short.head == ("random" if "engine" in more else "probe")


def test_what_is_done_is_not_left() -> None:
    whole = Estimate(head=10, calibrate=20, start=5, train=100, source="")
    rows = tuple({"phase": phase} for phase in ("head", "calibrate", "start", "train"))
    assert whole.left(Progress(State.WAITING), 4) == whole.total == 135
    assert whole.left(Progress(State.INTERRUPTED, rows[:1]), 4) == 135
    assert whole.left(Progress(State.INTERRUPTED, rows[:2]), 4) == 125
    assert whole.left(Progress(State.INTERRUPTED, rows[:3]), 4) == 100
    assert whole.left(Progress(State.INTERRUPTED, rows), 4) == 75
    assert whole.left(Progress(State.FINISHED, rows), 4) == 0


def test_cells_at_a_time_share_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five cells of 60 seconds: two of four processes have two of them."""
    monkeypatch.setattr(Forecast, "of", lambda *_: Estimate(20, 10, 10, 20, "a test"))
    _, chosen = select("smoke/random-iid")
    cells = make_cells(chosen, {"engine": "in-process", "results-dir": str(tmp_path)}, 5)
    for jobs, clock in ((1, "0:05:00"), (2, "0:03:00"), (4, "0:02:00"), (8, "0:01:00")):
        print_plan(cells, session_minutes=60, jobs=jobs)
        assert f"about {clock} left" in capsys.readouterr().out


def test_cells_at_a_time_are_measured_with_the_threads_that_each_will_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[int] = []

    def of(forecast: Forecast, config: RunConfig) -> Estimate:
        measured.append(config.threads)
        return Estimate(1, 1, 1, 1, "a test")

    monkeypatch.setattr(Forecast, "of", of)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 6)
    monkeypatch.setattr(planning, "resolve_device", lambda name: torch.device("cuda"))
    _, chosen = select("smoke/random-iid")
    common = {"engine": "in-process", "results-dir": str(tmp_path)}
    for threads, jobs in ((0, 1), (0, 2), (0, 8), (5, 2)):
        cells = make_cells(chosen, {**common, "threads": threads}, 1)
        print_plan(cells, session_minutes=60, jobs=jobs)
        shared = "warning: the times are of runs alone on the GPU" in capsys.readouterr().out
        assert shared == (jobs > 1)
    assert measured == [0, 3, 1, 5]


def test_plan_says_what_is_left_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--set=num-clients=10", "--set=local-steps=1", "--set=calibration-rounds=1"]
    place = ["--engine", "in-process", "--results-dir", str(tmp_path), "--seeds", "1", *few]
    assert main(["plan", "smoke/*-nc1", *place, "--session-minutes", "60"]) == 0
    before = capsys.readouterr().out
    assert before.count("measuring a round") == before.count(" ...\n") == 2
    assert "waiting" in before
    assert re.search(r"2 cells, 0 finished; about \d:\d\d:\d\d left", before)
    assert "1 session of 60 minutes" in before
    assert not list(tmp_path.iterdir())
    assert main(["run", "smoke/random-nc1", *place]) == 0
    capsys.readouterr()
    assert main(["plan", "smoke/random-*", *place]) == 0
    after = capsys.readouterr().out
    assert "measuring" not in after  # another partition takes the same time
    assert "0:00:00  finished cells" in after and "2 cells, 1 finished" in after
    assert main(["plan", "smoke/random-*", *place, "--seeds", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [line[:4] for line in lines] == [
        ["smoke/random-iid", "0,", "1", "waiting"],
        ["smoke/random-nc1", "0", "finished", "12"],
        ["smoke/random-nc1", "1", "waiting", "12"],
    ]
    assert main(["plan", "smoke/random-nc1", *place, "--set", "lr-schedule=step"]) == 0
    assert "warning" not in capsys.readouterr().out  # at round 11 of 12
    idle = ["--set", "lr-schedule=step", "--set", "lr-step-rounds=12"]
    assert main(["plan", "smoke/random-nc1", *place, *idle]) == 0
    said = "warning: smoke/random-nc1: lr-schedule = 'step' lowers lr in no round: its first step"
    assert said in capsys.readouterr().out
    assert main(["plan", "smoke", *place, "--session-minutes", "0"]) == ExitStatus.REFUSED
