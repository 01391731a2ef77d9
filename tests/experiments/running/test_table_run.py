"""Cells of a table: skipped when finished, continued when not, and one that fails alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.commands import run as run_command
from experiments.exit_status import ExitStatus
from experiments.running import table_run
from experiments.running.cells import Cell, FinishedRuns, identity, make_cells, progress
from experiments.running.launch import attempt
from experiments.running.presets import load_table, select
from fedta_app.config import RunConfig, to_toml
from fedta_app.errors import ConfigError
from fedta_app.files import file_sha256, read_toml
from fedta_app.runs import directory
from fedta_app.runs.directory import RunDirectory, run_path, started_once
from fedta_app.runs.records import read_summary
from tests.experiments.interrupting import ctrl_c_after

ROOT = Path(__file__).resolve().parents[3]
PAIR = "demo/[fm]*"  # fedavg and masked
SHORT = {
    "num-server-rounds": 2, "eval-size": 50, "local-steps": 1, "num-clients": 10,
    "calibration-examples": 4, "calibration-rounds": 1,
}  # fmt: skip
QUICK = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]


def arguments(folder: Path, selection: str = PAIR, *more: str) -> list[str]:
    return ["run", selection, "--engine", "in-process", "--results-dir", str(folder), *QUICK, *more]


def test_an_identity_is_what_is_computed_and_not_where() -> None:
    config = RunConfig.from_mapping({"num-clients": 20, "engine": "flower"})
    same = config.with_values(
        name="other", engine="in-process", device="cpu", threads=3, kernels="torch",
        transport="wire",
        results_dir="/x", data_dir="/y",
        checkpoint_every=7, max_minutes=1.0, resume=False,
    )  # fmt: skip
    assert identity(same) == identity(config)
    different = {identity(config)}
    for values in ({"seed": 1}, {"lr": 0.03}, {"engine": "centralized"}, {"eval_size": 9}):
        different.add(identity(config.with_values(**values)))
    assert len(different) == 5


def test_finished_cells_are_skipped_and_the_summary_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path)) == ExitStatus.FINISHED
    first = capsys.readouterr().out
    assert first.count("run directory: ") == 4
    assert "demo/fedavg seed 0  val " in first
    assert "2 of 2 cells are finished" in first
    before = (tmp_path / "demo/fedavg/seed0/summary.json").read_bytes()
    assert main(arguments(tmp_path)) == ExitStatus.FINISHED
    again = capsys.readouterr().out
    assert "run directory" not in again
    assert again.count("finished before") == 2
    assert (tmp_path / "demo/fedavg/seed0/summary.json").read_bytes() == before
    assert main(arguments(tmp_path, "demo/fedavg", "--device", "cpu", "--set", "threads=0")) == 0
    assert "finished before: " in capsys.readouterr().out
    assert main(arguments(tmp_path, "demo/fedavg", "--no-resume")) == ExitStatus.FINISHED
    assert (tmp_path / "demo/fedavg/seed0.old-1/summary.json").exists()
    config = RunConfig.from_mapping(read_toml(tmp_path / "demo/fedavg/seed0/config.toml"))
    (preset,) = select("demo/fedavg")[1]
    cell = Cell(preset, config.with_values(resume=True))
    assert FinishedRuns(tmp_path).path(cell) == tmp_path / "demo/fedavg/seed0"
    shutil.rmtree(tmp_path / "demo/fedavg/seed0")
    assert FinishedRuns(tmp_path).path(cell) is None  # what was thrown out is no result


def test_a_cell_that_fails_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1e30 makes the loss of the dense run infinite, or NaN; a mask of one weight bears it.
    diverge = ["--set", "lr=1e30", "--set", "sparsity=0.99999", "--set", "clip-norm=1.0"]
    assert main(arguments(tmp_path, PAIR, *diverge)) == ExitStatus.FAILED
    output = capsys.readouterr().out
    assert "failed: RunError: training diverged in round" in output
    assert "1 of 2 cells are finished" in output
    cells = make_cells(select(PAIR)[1], {"results-dir": str(tmp_path)}, 1)
    assert progress(cells[0].config).state == "another configuration"


@pytest.mark.parametrize("round_number", [1, 2])
def test_no_cell_starts_after_ctrl_c_even_in_the_last_round_of_one(
    tmp_path: Path,
    round_number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ctrl_c_after(monkeypatch, lambda row: (row.phase, row.round) == ("train", round_number))
    assert main(arguments(tmp_path)) == ExitStatus.INTERRUPTED
    output = capsys.readouterr().out
    assert output.count("run directory: ") == 2 and "  waiting\n" in output
    assert f"{round_number - 1} of 2 cells are finished\nto continue: " in output
    assert not (tmp_path / "demo/fedavg/seed0/stop").exists()


def test_a_cell_that_another_command_starts_over_meanwhile_is_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_and_lose(cells: list[Cell], **options: object) -> object:
        outcomes = table_run.run_cells(cells, **options)  # type: ignore[arg-type]
        directory.start_over(cells[0].config)
        return outcomes

    monkeypatch.setattr(run_command, "run_cells", run_and_lose)
    assert main(arguments(tmp_path)) == ExitStatus.FINISHED
    assert not (tmp_path / "demo/comparison.png").exists()


def test_a_second_ctrl_c_interrupts_a_run_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        ctrl_c_after(patch, lambda row: row.phase == "train", times=2)
        assert main(arguments(tmp_path)) == ExitStatus.INTERRUPTED
    (cell,) = make_cells(select("demo/fedavg")[1], {"results-dir": str(tmp_path), **SHORT}, 1)
    assert str(progress(cell.config)) == "interrupted at train round 1"
    assert read_summary(cell.path)["reason"] == "interrupted"
    assert main(arguments(tmp_path)) == ExitStatus.FINISHED


def test_what_starts_over_is_continued_and_not_taken_from_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path)) == ExitStatus.FINISHED
    over = arguments(tmp_path, PAIR, "--no-resume", "--max-minutes", "1e-9")
    assert main(over) == ExitStatus.STOPPED
    assert all((tmp_path / f"demo/{name}/seed0.old-1").exists() for name in ("fedavg", "masked"))
    capsys.readouterr()
    assert main(arguments(tmp_path)) == ExitStatus.FINISHED
    output = capsys.readouterr().out
    assert "finished before" not in output and output.count("  finished\n") == 2
    assert not list(tmp_path.glob("demo/*/seed0.old-2"))


@pytest.mark.parametrize("ends", [False, True])
def test_two_commands_share_a_table(
    tmp_path: Path,
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other command begins the second cell while this one runs the first."""
    (other,) = make_cells(select("demo/masked")[1], {"results-dir": str(tmp_path), **SHORT}, 1)
    launched = []

    def attempt(config: RunConfig, **options: object) -> ExitStatus:
        launched.append(config.name)
        held.enter_context(started_once(other.path))
        if ends:
            held.close()
            (other.path / "config.toml").write_text(to_toml(other.config))
            (other.path / "summary.json").write_text(json.dumps({"status": "finished"}))
        return ExitStatus.FINISHED

    monkeypatch.setattr(table_run, "attempt", attempt)
    other.path.mkdir(parents=True)
    with ExitStack() as held:
        outcomes = table_run.run_cells(
            make_cells(select(PAIR)[1], {"results-dir": str(tmp_path), **SHORT}, 1),
            client_cpus=1, client_gpus=None, jobs=1,
        )  # fmt: skip
    assert launched == ["demo/fedavg"]
    assert table_run.exit_status(outcomes) == (ExitStatus.FINISHED if ends else ExitStatus.STOPPED)
    assert outcomes[1].word == ("finished before" if ends else "running in another process")


def test_a_run_that_another_command_has_just_begun_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(directory, "_LOCK_PATIENCE", 0.1)
    config = RunConfig(name="x", results_dir=str(tmp_path))
    run_path(config).mkdir(parents=True)
    with started_once(run_path(config)):
        assert attempt(config, client_cpus=1, client_gpus=None) == ExitStatus.STOPPED
    assert "is in use by another process" in capsys.readouterr().out


def test_a_finished_run_of_another_table_counts_with_the_right_weights_only(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"now")
    values = {"results-dir": str(tmp_path), "weights": str(weights), **SHORT}
    (cell,) = make_cells(select("demo/fedavg")[1], values, 1)

    def finished(name: str, sha256: str) -> Path:
        folder = run_path(cell.config.with_values(name=name))
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(to_toml(cell.config.with_values(name=name)))
        summary = {"status": "finished", "identity": {"weights-file-sha256": sha256}}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    finished("a/x", "0" * 64)
    assert FinishedRuns(tmp_path).path(cell) is None
    right = finished("b/x", file_sha256(weights))
    assert FinishedRuns(tmp_path).path(cell) == right


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_cells_that_stop_early_are_continued(
    tmp_path: Path, jobs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = ["--set", "max-minutes=1e-9", "--jobs", jobs]
    assert main(arguments(tmp_path, PAIR, *stop)) == ExitStatus.STOPPED
    assert capsys.readouterr().out.count("  stopped\n") == 2
    assert (
        main(arguments(tmp_path, PAIR, "--max-minutes", "1e-9", "--jobs", jobs))
        == ExitStatus.STOPPED
    )
    output = capsys.readouterr().out  # the limit is for all cells together
    assert output.count("  stopped\n") == 1 and output.count("  waiting\n") == 1
    assert main(arguments(tmp_path, PAIR, "--jobs", jobs)) == ExitStatus.FINISHED


@pytest.mark.slow
def test_a_cell_that_another_process_runs_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cell,) = make_cells(
        select("demo/fedavg")[1],
        {"results-dir": str(tmp_path), **SHORT},
        1,
    )
    taken = RunDirectory(cell.config)
    try:
        assert progress(cell.config).state == "running"
        assert main(arguments(tmp_path, PAIR)) == ExitStatus.STOPPED
        assert "running in another process\n" in capsys.readouterr().out
        assert main(arguments(tmp_path, "demo/fedavg")) == ExitStatus.STOPPED
        assert "running in another process: " in capsys.readouterr().out
    finally:
        taken.close()
    assert progress(cell.config).state == "interrupted"


@pytest.mark.slow
def test_two_jobs_give_what_one_gives(tmp_path: Path) -> None:
    weights = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        assert main(arguments(folder, PAIR, "--jobs", jobs)) == ExitStatus.FINISHED
        weights.append(
            [path.read_text() for path in sorted(folder.glob("demo/*/seed0/metrics.csv"))]
        )
    columns = [[line.split(",")[:8] for text in run for line in text.split()] for run in weights]
    assert columns[0] == columns[1]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_jobs_are_refused_where_the_engine_runs_clients_side_by_side(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--results-dir", str(tmp_path)]
    assert main([command, "demo", "--jobs", "2", *place]) == ExitStatus.REFUSED
    assert "--jobs 2 is not allowed with engine = 'flower'" in capsys.readouterr().err
    assert main([command, "demo", "--jobs", "0", *place]) == ExitStatus.REFUSED


def start_long(folder: Path) -> "subprocess.Popen[bytes]":
    short = f"num-server-rounds={SHORT['num-server-rounds']}"
    # So many that it is still in the middle when the test ends it.
    words = ["num-server-rounds=5000" if word == short else word for word in arguments(folder)]
    command = [sys.executable, "-m", "experiments", *words, "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    metrics = [folder / f"demo/{name}/seed0/metrics.csv" for name in ("fedavg", "masked")]
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.read_text().count("\n") > 4 for path in metrics):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_stops_every_job_after_its_round(tmp_path: Path) -> None:
    process = start_long(tmp_path)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == ExitStatus.INTERRUPTED, output
    assert output.count(b"stopped (interrupted)") == 2
    for name in ("fedavg", "masked"):
        assert list((tmp_path / f"demo/{name}/seed0/checkpoint").glob("step-*"))


@pytest.mark.slow
def test_jobs_end_with_the_runner_that_is_killed(tmp_path: Path) -> None:
    process = start_long(tmp_path)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    metrics = tmp_path / "demo/fedavg/seed0/metrics.csv"
    while True:  # until it grows no more
        size = metrics.stat().st_size
        time.sleep(1.0)
        if metrics.stat().st_size == size:
            break
        assert time.monotonic() < deadline


def test_a_table_is_the_product_of_its_axes() -> None:
    table = load_table("smoke")
    assert [preset.name for preset in table.presets] == [
        "least-iid", "least-nc1", "random-iid", "random-nc1"
    ]  # fmt: skip
    assert table.presets[1].coordinates == {"rule": "least", "partition": "nc1"}
    assert table.seeds == 2
    assert [preset.name for preset in select("smoke/*-nc1")[1]] == ["least-nc1", "random-nc1"]
    with pytest.raises(ConfigError, match="there is no scale 'vast'"):
        load_table("smoke", "vast")


@pytest.mark.slow
def test_a_cell_that_another_table_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(arguments(tmp_path, "demo/fedavg", "--set", "name=other/same")) == ExitStatus.FINISHED
    )
    capsys.readouterr()
    assert main(arguments(tmp_path, PAIR)) == ExitStatus.FINISHED
    output = capsys.readouterr().out
    assert "finished before as other/same" in output and output.count("run directory") == 2
    assert main(["plan", *arguments(tmp_path, "demo/fedavg")[1:]]) == ExitStatus.FINISHED
    assert "1 cell, 1 finished" in capsys.readouterr().out
    # Who names a run wants it under that name.
    named = arguments(tmp_path, "demo/fedavg", "--name", "again")
    assert main(["plan", *named[1:]]) == ExitStatus.FINISHED
    assert "1 cell, 0 finished" in capsys.readouterr().out
    assert main(named) == ExitStatus.FINISHED
    assert (tmp_path / "again/seed0/summary.json").exists()
