import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from experiments.running.cells import progress
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.runs import directory as run_directory
from fedta_app.runs.directory import RunDirectory, check_resumable, run_path


def config(tmp_path: Path, **values: object) -> RunConfig:
    return RunConfig.from_mapping(
        {"results-dir": str(tmp_path), "name": "table/cell", "seed": 3, **values}
    )


def test_the_path_is_absolute_and_holds_name_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_path(config(tmp_path)) == tmp_path / "table/cell/seed3"
    monkeypatch.chdir(tmp_path)
    assert run_path(RunConfig(results_dir="here")) == tmp_path / "here/run/seed0"


def test_another_configuration_is_refused_with_a_diff(tmp_path: Path) -> None:
    RunDirectory(config(tmp_path)).close()
    with pytest.raises(ConfigError, match=r"another configuration \(lr: 0.02 -> 0.5\)"):
        RunDirectory(config(tmp_path, lr=0.5))


def test_where_and_how_long_may_change(tmp_path: Path) -> None:
    RunDirectory(config(tmp_path)).close()
    other = {"max-minutes": 5, "engine": "in-process", "checkpoint-every": 7, "data-dir": "x"}
    check_resumable(config(tmp_path, **other))


def test_a_run_from_before_a_key_existed_goes_on(tmp_path: Path) -> None:
    RunDirectory(config(tmp_path)).close()
    path = run_path(config(tmp_path)) / "config.toml"
    lines = [line for line in path.read_text().splitlines() if "head-fraction" not in line]
    path.write_text("\n".join(lines))
    check_resumable(config(tmp_path))
    with pytest.raises(ConfigError, match=r"\(head-fraction: 1.0 -> 0.5\)"):
        check_resumable(config(tmp_path, **{"head-fraction": 0.5}))


def test_without_resume_the_earlier_run_is_moved_aside(tmp_path: Path) -> None:
    first = RunDirectory(config(tmp_path))
    (first.path / "metrics.csv").write_text("kept")
    first.close()
    for number in (1, 2):
        RunDirectory(config(tmp_path, lr=0.5, resume=False)).close()
        assert (tmp_path / f"table/cell/seed3.old-{number}").is_dir()
    assert (tmp_path / "table/cell/seed3.old-1/metrics.csv").read_text() == "kept"
    assert not (tmp_path / "table/cell/seed3/metrics.csv").exists()


def _hold(path: str, ready: "multiprocessing.synchronize.Event") -> None:
    held = RunDirectory(RunConfig.from_mapping({"results-dir": path}))
    ready.set()
    multiprocessing.Event().wait()
    held.close()


def test_one_process_at_a_time_and_a_killed_one_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_directory, "_LOCK_PATIENCE", 0.3)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RunError, match="is in use by another process"):
            RunDirectory(RunConfig(results_dir=str(tmp_path)))
    finally:
        holder.kill()
        holder.join()
    RunDirectory(RunConfig(results_dir=str(tmp_path))).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):  # nothing is left that a killed process would leave
        RunDirectory(config(tmp_path))
    assert progress(config(tmp_path)).state == "interrupted"


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ConfigError, match=r"results-dir = .* is not allowed: .* cannot be written"):
        RunDirectory(RunConfig(results_dir=str(blocked)))
    if os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(ConfigError, match="cannot be written"):
            RunDirectory(RunConfig(results_dir=str(closed)))


def test_a_stop_is_asked_for_once(tmp_path: Path) -> None:
    directory = RunDirectory(config(tmp_path))
    (directory.path / "stop").touch()
    assert directory.stop_requested()
    assert not directory.stop_requested()
    directory.close()


def test_a_move_aside_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    RunDirectory(config(tmp_path)).close()
    run = tmp_path / "table/cell/seed3"
    (run / "checkpoint").mkdir()
    (run / "config.toml").unlink()  # as if config.toml had been moved, and nothing else
    RunDirectory(config(tmp_path, lr=0.5, resume=False)).close()
    assert not (run / "checkpoint").exists()
    assert (tmp_path / "table/cell/seed3.old-1/checkpoint").is_dir()
