"""A table whose learning rates a study finds: a run without them says so."""

import importlib.util
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.arguments import check, parse
from experiments.commands.cells import chosen_cells, rates_warning
from experiments.exit_status import ExitStatus
from experiments.running import presets
from experiments.running.presets import load_table, tables

COMMAND = "`python -m experiments.studies.equal_length --data-dir DIR --scale tiny`"


@pytest.fixture(autouse=True)
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the tuned file of every table and scale, which is not there yet."""
    path = tmp_path / "tuned.toml"
    monkeypatch.setattr(presets, "tuned_paths", lambda table, scale: [path])
    return path


def warning(*words: str) -> str:
    options = parse(["run", *words, "--seeds", "1"])
    check(options)
    return rates_warning(options, chosen_cells(options))


def test_presets_without_a_rate_of_the_study_are_named(tuned: Path) -> None:
    said = warning("equal-length", "--scale", "tiny")
    assert COMMAND in said and "of dense-iid, dense-nc5, dense-nc1 and 18 more presets:" in said
    tuned.write_text("[dense-nc5]\nlr = 0.01\n[least-nc5]\nlr = 0.3\n[most-nc5]\nmomentum = 0.5\n")
    assert not warning("equal-length/least-nc5", "--scale", "tiny")
    assert " of most-nc5: " in warning("equal-length/*st-nc5", "--scale", "tiny")


def test_a_rate_of_ones_own_and_other_tables_need_no_study() -> None:
    assert warning("equal-length/least-nc5")
    assert not warning("equal-length/least-nc5", "--set", "lr=0.3")
    assert not warning("mask-rules/least-nc5-frozen")


def test_run_says_so_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["equal-length/least-nc5", "--scale", "tiny", "--engine", "in-process", "--seeds", "1"]
    at_once = ["--max-minutes", "1e-9", "--results-dir", str(tmp_path)]
    assert main(["run", *words, *at_once]) == ExitStatus.STOPPED
    said, ran, _ = capsys.readouterr().out.partition("run directory: ")
    assert "warning: the table equal-length compares at " in said and COMMAND in said and ran


def test_plan_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.commands.plan.print_plan", lambda *_, **__: None)
    words = ["plan", "equal-length/least-nc5", "--scale", "tiny", "--results-dir", str(tmp_path)]
    assert main(words) == ExitStatus.FINISHED
    assert COMMAND in capsys.readouterr().out


def test_the_commands_that_tables_name_are_there() -> None:
    named = {table: load_table(table).rates_from for table in tables()}
    assert named["equal-length"]
    for command in filter(None, named.values()):
        python, option, module, *_ = command.split()
        assert (python, option) == ("python", "-m") and importlib.util.find_spec(module)
