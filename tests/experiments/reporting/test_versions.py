"""Cells of several versions of the code: what the caption says, and what is said before a run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.reporting import versions
from experiments.reporting.origin import _data, check_origin, commits
from experiments.reporting.records import RecordError, read_records
from experiments.reporting.versions import code_versions, code_warnings
from experiments.running.cells import make_cells
from experiments.running.presets import select
from tests.experiments.reporting.test_report import TABLE, write, write_all


def code(sha: str, commit: str = "a" * 40, **parts: str) -> dict[str, Any]:
    return {
        "sha256": sha,
        "commit": commit,
        "parts": {k.replace("_", " "): v for k, v in parts.items()},
    }


@pytest.mark.parametrize(
    ("codes", "number"),
    [
        ([code("1", shared="s", rule_a="x"), code("2", shared="s", rule_b="y")], 1),  # a file more
        ([code("1", shared="s", rule_a="x"), code("2", shared="s", rule_a="y")], 2),
        ([code("1", shared="s"), code("2", shared="t")], 2),
        ([code("1", shared="s", a="x"), code("1", shared="s", b="y"), code("2", b="z")], 2),
        ([{"sha256": "1", "commit": "a"}, {"sha256": "1", "commit": "b"}], 1),  # older records
        ([{"sha256": "1", "commit": "a"}, {"sha256": "2", "commit": "b"}], 2),
        ([{"sha256": "1", "commit": "a"}, code("1", shared="s"), code("2", shared="s")], 1),
        ([{"sha256": "1", "commit": "a"}, code("2", shared="s")], 2),
    ],
)  # fmt: skip
def test_code_is_of_one_version_where_all_that_both_used_is_the_same(
    codes: list[dict[str, Any]], number: int
) -> None:
    assert len(code_versions(codes)) == number
    assert len(code_versions(codes[::-1])) == number


def notes(results: Path) -> list[str]:
    return check_origin(read_records(TABLE, results), results / "smoke")


def test_the_caption_says_which_cells_are_of_other_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path)
    write(tmp_path, "random-nc1", 1, code={"sha256": "x", "commit": "f" * 40, "changed": False})
    expected = (
        "cells of 2 versions of the code, so that a difference may be one of code: 01234567 ran "
        "smoke/least-iid seed 0 and 6 more, ffffffff ran smoke/random-nc1 seed 1"
    )
    assert notes(tmp_path) == [expected]
    assert main(["report", "smoke", "--records", str(tmp_path)]) == ExitStatus.FINISHED
    assert f"  note: {expected}\n" in capsys.readouterr().out
    assert f"Note: {expected}." in (tmp_path / "smoke/report.md").read_text()
    # A session of a run that was continued with other code counts too.
    sessions = [{"seconds": 1, "code": {"sha256": "x", "commit": "f" * 40}}]
    write(tmp_path, "random-nc1", 1, sessions=sessions)
    assert "ffffffff ran smoke/random-nc1 seed 1" in notes(tmp_path)[0]


def test_origin_toml_says_why_other_code_changes_no_figure(tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path, "least-iid", 0, code={"sha256": "x", "commit": "f" * 40, "changed": False})
    origin = tmp_path / "smoke/origin.toml"
    origin.write_text('mixed-code = "it prints more"')
    assert notes(tmp_path) == ["cells of 2 versions of the code: it prints more"]
    origin.write_text('mixed-code = "it prints more"\ncommits = ["0123", "ffff"]')
    assert notes(tmp_path) == ["cells of 2 versions of the code: it prints more"]
    origin.write_text(origin.read_text() + '\nnote = "read this"')
    assert notes(tmp_path) == ["read this", "cells of 2 versions of the code: it prints more"]
    origin.write_text('mixed-code = "it prints more"\ncommits = ["0123", "ffff"]')
    # The same code under another commit is covered too.
    write(tmp_path, "least-iid", 1, code={"sha256": "x", "commit": "d" * 40, "changed": False})
    assert notes(tmp_path) == ["cells of 2 versions of the code: it prints more"]
    write(tmp_path, "least-iid", 1, code={"sha256": "y", "commit": "e" * 40, "changed": False})
    first, second = notes(tmp_path)
    assert first == "cells of 3 versions of the code: it prints more"
    assert second == (
        "that says nothing of other versions among them, so that a difference may be one of code: "
        "eeeeeeee ran smoke/least-iid seed 1"
    )


def test_origin_toml_says_which_files_hold_the_same_weights(tmp_path: Path) -> None:
    write_all(tmp_path)
    identity = {"data-sha256": "d0", "weights-file-sha256": "later"}
    write(tmp_path, "least-iid", 0, identity=identity)
    with pytest.raises(RecordError, match="different weights"):
        notes(tmp_path)
    origin = tmp_path / "smoke/origin.toml"
    for not_enough in (
        'mixed-weights = "it says more"\nsame-weights = ["w", "other"]',
        'same-weights = ["w", "later"]',  # without a reason
    ):
        origin.write_text(not_enough)
        with pytest.raises(RecordError, match="different weights"):
            notes(tmp_path)
    origin.write_text('mixed-weights = "it says more"\nsame-weights = ["w", "later"]')
    assert notes(tmp_path) == ["cells began from several files of weights: it says more"]
    write(tmp_path, "least-iid", 0)
    assert notes(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('mixed-code = "a"\ncommits = "b1"', "commits = 'b1' is not allowed: commits is a list"),
        ('mixed-code = "a"\ncommit = ["b1"]', "unknown key 'commit': keys are mixed-code, commits"),
        ('mixed_code = "a"', "unknown key 'mixed_code'"),
        ("mixed-code = true", "mixed-code = True is not allowed: mixed-code is a sentence"),
        ('mixed-code = " "', "mixed-code is a sentence"),
        ("commits = [3]", "commits is a list of texts, at least 1"),
        ('same-weights = ["w"]', "same-weights is a list of texts, at least 2"),
        ("note = 3", "note is a sentence"),
    ],
)
def test_an_origin_toml_that_excuses_nothing_is_refused(
    tmp_path: Path, text: str, sentence: str
) -> None:
    write_all(tmp_path)
    (tmp_path / "smoke/origin.toml").write_text(text)
    with pytest.raises(RecordError) as caught:
        notes(tmp_path)
    assert sentence in str(caught.value)


def test_text_of_each_seed_is_that_of_its_own_roles(tmp_path: Path) -> None:
    """With a fixed validation set too: the seed draws whose text it is."""
    (preset,) = select("shakespeare/fedavg-dense", "tiny")[1]
    write_all(tmp_path)
    record, *_ = read_records(TABLE, tmp_path)
    found = []
    for values in ({}, {"seed": 1}, {"num-clients": 2}, {"lr": 0.3}):
        config = preset.config({"val-seed": 0, **values})
        found.append(_data(replace(record, seed=config.seed, config=config))[0])
    assert len(set(found)) == 3 and found[0] == found[3]


@pytest.mark.parametrize("changed", [True, ["fedta_app/masks/rules/least_sensitive.py"]])
def test_the_caption_says_what_no_commit_repeats(tmp_path: Path, changed: object) -> None:
    write_all(tmp_path)
    write(tmp_path, "least-iid", 0, code={"sha256": "c", "commit": "f" * 40, "changed": changed})
    (note,) = notes(tmp_path)
    assert note == (
        "1 of 8 cells were run with code that is not committed, as smoke/least-iid seed 0, and "
        "cannot be repeated from a commit"
    )
    assert commits(read_records(TABLE, tmp_path)) == "01234567, ffffffff with changes"


def test_a_run_is_told_of_other_code_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"sha256": "c", "commit": "0123456789", "changed": []}
    monkeypatch.setattr(versions, "code_facts", lambda config: now)
    results, runs = tmp_path / "results", tmp_path / "runs"
    table, chosen = select("smoke/*-iid")
    cells = make_cells(chosen, {"results-dir": str(runs)}, table.seeds)
    write_all(results)
    assert code_warnings(cells, results) == []  # the same code
    # Kept records of cells that run now are replaced; that of another cell stays beside them.
    write(results, "least-iid", 0, code={"sha256": "x", "commit": "f" * 40})
    assert code_warnings(cells, results) == []
    write(results, "least-nc1", 1, code={"sha256": "x", "commit": "f" * 40})
    (warning,) = code_warnings(cells, results)
    assert warning.startswith(
        f"smoke/least-nc1 seed 1, in {results}/smoke, ran with other code than this (commit "
        "ffffffff): a report of them and of what runs now says so in its caption"
    )
    # A finished run of the table counts like a record; a variant is in no table.
    write(tmp_path / "other", "random-nc1", 0, code={"sha256": "y", "commit": "e" * 40})
    (runs / "smoke").mkdir(parents=True)
    (tmp_path / "other/smoke/cells/random-nc1").rename(runs / "smoke/random-nc1")
    (warning,) = code_warnings(cells, results)
    assert warning.startswith("smoke/least-nc1 seed 1 and 1 more, in ")
    variant = make_cells(chosen, {"results-dir": str(runs)}, 1, "mine")
    assert code_warnings(variant, results) == []
    now["changed"] = ["fedta_app/masks/rules/mine.py"]
    (warning,) = code_warnings(variant, results)
    assert warning.startswith("fedta_app/masks/rules/mine.py is not committed as used now")


def test_the_warning_comes_before_round_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"sha256": "c", "commit": "0123456789", "changed": ["fedta_app/seeding.py"]}
    for module in ("experiments.reporting.versions", "fedta_app.runs.session"):
        monkeypatch.setattr(f"{module}.code_facts", lambda config: changed)
    quick = ["--set", "num-server-rounds=1", "--engine", "in-process", "--seeds", "1"]
    arguments = ["run", "smoke/random-iid", "--name", "mine", *quick]
    assert main([*arguments, "--results-dir", str(tmp_path)]) == ExitStatus.FINISHED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: fedta_app/seeding.py is not committed as used now")
    assert lines[1] == f"run directory: {tmp_path}/mine/seed0"
    assert sum(line.startswith("warning") for line in lines) == 1
