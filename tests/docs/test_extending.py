"""docs/extending.md, done as it says, in a copy of the app."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.algorithms import Algorithm
from tests.docs.pages import ROOT, blocks
from tests.fedta_app.algorithms.simulation import Server, clients, optimum, schedule

APP = ["fedta_app", "engine", "client_app", "strategies", "server_app", "experiments"]
PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the app, committed, with the files that the page adds."""
    folder = tmp_path_factory.mktemp("app")
    for name in APP:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / ".gitignore", folder)
    for block in blocks(PAGE):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as stream:  # an example replaces nothing
                stream.write(block.text)
    (folder / "data").mkdir()
    (folder / "results").mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "Stripes"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def test_the_commands_of_the_page_run_in_their_order(app: Path) -> None:
    for block in blocks(PAGE):
        if block.language != "console":
            continue
        for line in block.text.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            assert words[0] == "python"
            run = subprocess.run(
                [sys.executable, *words[1:]], cwd=app, text=True, capture_output=True,
                env={**os.environ, "PYTHONPATH": str(app)},
            )  # fmt: skip
            assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
    report = (app / "results" / "stripes" / "report.md").read_text()
    assert "two classes per client cost" in report and "FAILS" not in report


def test_the_files_of_the_page_pass_the_checks(app: Path) -> None:
    files = [block.title for block in blocks(PAGE) if block.title.endswith(".py")]
    for command in (["format", "--check"], ["check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files], cwd=app, text=True,
            capture_output=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout


def test_feddyn_reaches_the_optimum_that_fedavg_misses() -> None:
    (source,) = [block.text for block in blocks(PAGE) if block.title.endswith("feddyn.py")]
    names: dict[str, Any] = {"__name__": "feddyn"}
    exec(source.replace('ClassVar[str] = "feddyn"', 'ClassVar[str] = ""'), names)  # unregistered
    distances = []
    for algorithm in (Algorithm(), names["FedDyn"](num_clients=6, pull=1.0)):
        those = clients(6, 3)
        server = Server(algorithm, those, torch.zeros(3, dtype=torch.float64), momentum=0.9)
        for chosen in schedule(600, 6, 3):
            server.run_round(chosen)
        distances.append(float((server.weights - optimum(those)).abs().max()))
    assert distances[0] > 0.01 and distances[1] < 1e-9
