"""What identifies the code of a run: the files that it uses, and the commit they come from."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedta_app.config import RunConfig
from fedta_app.runs import provenance, used_code
from fedta_app.runs.command import to_continue, typed, typed_command
from fedta_app.runs.provenance import CHECKOUT_VARIABLE, code_facts, uncommitted
from fedta_app.runs.used_code import ROOMS, read_sources, sources_sha256, used_parts

ROOT = Path(__file__).resolve().parents[3]
RANDOM = RunConfig.from_mapping(
    {"mask-rule": "random", "head": "ridge", "strategy": "scaffold", "model": "cnn"}
)


def hashes(config: RunConfig, sources: dict[str, bytes]) -> dict[str, str]:
    parts = used_parts(config, sources)
    return {part: sources_sha256(sources, paths) for part, paths in parts.items()}


def test_a_run_uses_shared_code_and_the_files_that_it_names() -> None:
    sources = read_sources(ROOT)
    parts = used_parts(RANDOM, sources)
    units = {part: paths for part, paths in parts.items() if part != "shared"}
    assert units == {
        "mask-rule random": ["fedta_app/masks/rules/random.py"],
        "strategy scaffold": [
            "fedta_app/algorithms/coverage.py",  # which it imports
            "fedta_app/algorithms/scaffold.py",
        ],
        "dataset digits": ["fedta_app/data/sets/digits.py"],
        "model cnn": ["fedta_app/models/architectures/cnn.py"],
    }
    shared = set(parts["shared"])
    assert {"fedta_app/masks/rules/__init__.py", "fedta_app/algorithms/base.py"} <= shared
    assert "fedta_app/masks/rules/agreement.py" not in shared
    central = RunConfig.from_mapping({"engine": "centralized"})
    assert set(used_parts(central, sources)) == {"shared", "dataset digits", "model vit_digits"}


@pytest.mark.parametrize(
    "path",
    [
        "fedta_app/masks/rules/mine.py", "fedta_app/algorithms/mine.py",
        "fedta_app/data/sets/mine.py", "fedta_app/models/architectures/mine.py",
    ],
)  # fmt: skip
def test_a_file_beside_the_others_changes_no_run_that_was_there(path: str) -> None:
    sources = read_sources(ROOT)
    more = sources | {path: b"from fedta_app.masks.rules.random import RULE\n"}
    assert hashes(RANDOM, more) == hashes(RANDOM, sources)
    assert sources_sha256(more) != sources_sha256(sources)


def test_what_a_run_uses_changes_its_part_alone() -> None:
    sources = read_sources(ROOT)
    before = hashes(RANDOM, sources)
    for path, part in {
        "fedta_app/masks/rules/random.py": "mask-rule random",
        "fedta_app/algorithms/scaffold.py": "strategy scaffold",
        "fedta_app/seeding.py": "shared",
    }.items():
        after = hashes(RANDOM, sources | {path: sources[path] + b"\n"})
        assert {p for p in before if before[p] != after[p]} == {part}


@pytest.mark.parametrize(
    "line",
    [
        "from fedta_app.masks.rules.agreement import RULE",
        "from fedta_app.masks.rules import agreement",
        "from .agreement import RULE",
        "from . import agreement",
        "import fedta_app.masks.rules.agreement",
        "def f():\n    from fedta_app.masks.rules.agreement import RULE",
    ],
)
def test_what_a_used_file_imports_is_used_too(line: str) -> None:
    sources = read_sources(ROOT)
    rule = "fedta_app/masks/rules/random.py"
    parts = used_parts(RANDOM, sources | {rule: sources[rule] + line.encode()})
    assert parts["mask-rule random"] == ["fedta_app/masks/rules/agreement.py", rule]
    seeding = sources["fedta_app/seeding.py"] + line.replace("from .", "from fedta_app.").encode()
    if "from ." not in line:
        shared = used_parts(RANDOM, sources | {"fedta_app/seeding.py": seeding})["shared"]
        assert "fedta_app/masks/rules/agreement.py" in shared


def test_a_file_that_is_not_parsed_imports_no_unit() -> None:
    sources = read_sources(ROOT)
    units = {path for path in sources if used_code._is_unit(path)}
    for path, source in sources.items():
        package = path.rpartition("/")[0].replace("/", ".")
        modules = used_code._imported_modules(ast.parse(source), package)
        assert (
            used_code._imports(path, source) & units == set(map(used_code._path, modules)) & units
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the app with a commit."""
    folder = tmp_path / "outer/fedta"
    for room in ROOMS:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / room, folder / room, ignore=ignored)
    git(folder.parent, "init", "--quiet")  # the app may be a folder of a repository
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "--quiet", "-m", "App")
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def facts(monkeypatch: pytest.MonkeyPatch, root: Path) -> dict[str, Any]:
    monkeypatch.setattr(provenance, "_ROOT", root)
    return code_facts(RANDOM)


def test_only_changes_of_used_files_count(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "fedta_app/masks/rules/mine.py").write_text('"""Mine."""\n')
    (checkout / "fedta_app/masks/rules/agreement.py").write_text('"""Changed."""\n')
    (checkout / "fedta_app/notes.md").write_text("Mine.")
    found = facts(monkeypatch, checkout)
    assert (found["commit"], found["changed"], uncommitted(found)) == (commit, [], "")
    for name in ("masks/rules/random.py", "seeding.py"):
        with (checkout / "fedta_app" / name).open("a") as stream:
            stream.write("\n")
    (checkout / "engine/new.py").write_text("")
    (checkout / "fedta_app/masks/sets.py").unlink()
    changed = facts(monkeypatch, checkout)["changed"]
    assert changed == [
        "engine/new.py", "fedta_app/masks/rules/random.py", "fedta_app/masks/sets.py",
        "fedta_app/seeding.py",
    ]  # fmt: skip
    assert uncommitted({"changed": changed}).startswith(
        "engine/new.py, fedta_app/masks/rules/random.py, fedta_app/masks/sets.py and 1 more are "
    )


@pytest.mark.parametrize("how", ["variable", "working directory"])
def test_a_copy_without_its_history_has_the_commit_of_the_same_code(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy)
    monkeypatch.chdir(checkout if how == "working directory" else tmp_path)
    if how == "variable":
        monkeypatch.setenv(CHECKOUT_VARIABLE, str(checkout))
    assert facts(monkeypatch, copy)["commit"] == git(checkout, "rev-parse", "HEAD")
    (copy / "fedta_app/seeding.py").write_text("")  # other code: nobody knows its commit
    found = facts(monkeypatch, copy)
    assert found["commit"] == "unknown" and "changed" not in found


def test_a_repository_around_an_installed_package_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "thesis.tex").write_text("")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "Thesis")
    site = tmp_path / "venv/site-packages"
    for room in ROOMS:
        (site / room).mkdir(parents=True)
        (site / room / "__init__.py").write_text("")
    monkeypatch.chdir(site)
    monkeypatch.setattr(provenance, "_ROOT", site)
    assert code_facts()["commit"] == "unknown"


def test_a_command_is_kept_as_it_was_typed_and_known_to_child_processes() -> None:
    words = [
        "fedta",
        "run",
        "smoke/*-nc1",
        "--no-resume",
        "--set",
        "resume=false",
        "--set",
        "a=b c",
    ]
    before = os.environ.copy()
    with typed(words):
        assert typed_command() == (
            "fedta run 'smoke/*-nc1' --no-resume --set resume=false --set 'a=b c'"
        )
        # What starts a run over does not continue it.
        assert to_continue() == "to continue: fedta run 'smoke/*-nc1' --set 'a=b c'"
        code = "from fedta_app.runs.command import typed_command; print(typed_command())"
        child = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
        )
        assert child.stdout.strip() == typed_command()
    assert os.environ == before and typed_command() is None
