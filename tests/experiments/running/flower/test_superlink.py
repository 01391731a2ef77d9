"""A run's SuperLink: started ahead, taken by the first run, and ended whoever takes it."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import ROOT
from experiments.exit_status import ExitStatus
from experiments.running import table_run
from experiments.running.flower import superlink
from experiments.running.flower.superlink import superlink_ahead, superlink_for
from experiments.running.table_run import Outcome, run_cells
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from tests.experiments.running.flower.scripts import superlink_that

STAYS = "exec sleep 60"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which a SuperLink that never answers notes its starts."""
    return superlink_that(monkeypatch, tmp_path, STAYS)


def number(starts: Path, expected: int) -> bool:
    """Return whether there have been so many starts, for which it waits a while."""
    deadline = time.monotonic() + 10
    while len(starts.read_text().splitlines()) < expected and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(starts.read_text().splitlines()) == expected


def test_the_first_run_takes_it_and_ends_it(starts: Path) -> None:
    with superlink_ahead():
        assert number(starts, 1)
        with superlink_for(ROOT) as link:
            assert link.process.poll() is None and number(starts, 1)
        assert link.process.poll() is not None and not link.home.exists()
        with superlink_for(ROOT) as second:
            assert second.home != link.home and number(starts, 2)
        assert second.process.poll() is not None


def test_one_that_nobody_took_ends_with_the_block(starts: Path) -> None:
    with pytest.raises(ConfigError), superlink_ahead():
        ((link, _),) = superlink._ahead
        assert number(starts, 1)
        raise ConfigError("a cell cannot be run")
    assert link.process.poll() is not None and not link.home.exists()
    assert superlink._ahead == []


def test_an_app_from_elsewhere_has_one_of_its_own(starts: Path, tmp_path: Path) -> None:
    with superlink_ahead(), superlink_for(tmp_path) as link:
        assert number(starts, 2)
        ((ahead, _),) = superlink._ahead
        assert ahead.home != link.home


def test_one_that_cannot_start_ahead_is_the_matter_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(superlink, "SCRIPTS", tmp_path)
    with superlink_ahead(), pytest.raises(FileNotFoundError), superlink_for(ROOT):
        pass


def test_what_is_not_passed_on_is_said_by_the_run_and_not_before(
    monkeypatch: pytest.MonkeyPatch, starts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with superlink_ahead():
        assert capsys.readouterr().err == ""  # the checks may refuse the cell, in one sentence
        with superlink_for(ROOT) as link:
            assert "own Flower and Ray: RAY_ADDRESS" in capsys.readouterr().err
            assert link.environment["RAY_ADDRESS"] == "local"


def test_one_that_ends_at_once_is_a_sentence_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    superlink_that(monkeypatch, tmp_path, "echo no port is free; exit 3")
    said = r"SuperLink did not start \(exit status 3\): no port is free"
    with superlink_for(ROOT) as link, pytest.raises(RunError, match=said):
        link.wait()


@pytest.mark.parametrize(("engine", "started"), [("flower", 1), ("in-process", 0)])
def test_it_starts_beside_the_checks_of_the_cells(
    monkeypatch: pytest.MonkeyPatch, starts: Path, tmp_path: Path, engine: str, started: int
) -> None:
    found = []

    def checks(*_: Any, **__: Any) -> None:
        found.append(number(starts, started) and len(superlink._ahead) == started)

    def run(config: RunConfig, **_: Any) -> ExitStatus:
        found.append(len(superlink._ahead) == started)
        return ExitStatus.FINISHED

    config = RunConfig(engine=engine, results_dir=str(tmp_path))
    cell: Any = SimpleNamespace(config=config, results=tmp_path, path=tmp_path / "run")
    monkeypatch.setattr(table_run, "_before", lambda cell, finished: Outcome(cell, cell.path))
    monkeypatch.setattr(table_run, "_preflight", checks)
    monkeypatch.setattr(table_run, "attempt", run)
    outcomes = run_cells([cell], client_cpus=1, client_gpus=None, jobs=1)
    assert found == [True, True] and outcomes[0].status == ExitStatus.FINISHED
    assert superlink._ahead == []
