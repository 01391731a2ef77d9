"""fedta where pip installs it: nothing is missing there, and nothing is written there."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackagePath
from pathlib import Path

import pytest

from experiments import installed
from experiments.installed import flower_scripts, write_app
from experiments.running import presets
from experiments.running.flower import engine, superlink
from experiments.running.presets import load_table
from experiments.running.tuning.outcome import write_choice
from fedta_app.config import RunConfig
from fedta_app.runs.provenance import CHECKOUT_VARIABLE
from tests.experiments.running.flower.scripts import superlink_that

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    pattern.removesuffix("*")
    for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
]


def test_every_file_of_the_packages_is_in_the_wheel() -> None:
    packaged = PROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        folder = ROOT / package
        data = {
            path
            for path in folder.rglob("*")
            if "__pycache__" not in path.parts and path.is_file() and path.suffix != ".py"
        }
        found = {path for pattern in packaged.get(package, ()) for path in folder.glob(pattern)}
        assert found == data, package
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_the_records_of_an_installed_package_are_those_of_the_working_directory(
    tmp_path: Path,
) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    # Other tests write to __pycache__ meanwhile, where files come and go.
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "experiments", site / "experiments", ignore=without)
    work.mkdir()
    command = [sys.executable, "-c", "import experiments as e; print(e.INSTALLED, e.RESULTS)"]
    for place in (f"False {site}/results\n", f"True {work}/results\n"):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        found = subprocess.run(
            command, cwd=work, env=environment, check=True, capture_output=True, text=True
        )
        assert found.stdout == place
        (site / "fedta-0.2.0.dist-info").mkdir(exist_ok=True)


def test_tuned_values_of_an_installed_package_lie_with_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(presets.FOLDER, tmp_path / "tables")
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "tables")
    monkeypatch.setattr(presets, "INSTALLED", True)
    monkeypatch.setattr(presets, "RESULTS", tmp_path / "results")
    before = {path: path.read_bytes() for path in (tmp_path / "tables").rglob("*.toml")}
    shipped = {p.name: p.values["lr"] for p in load_table("mask-rules", "small").presets}
    path = write_choice("mask-rules", "small", "random-nc5-frozen", {"lr": 0.123})
    assert path == tmp_path / "results/tuning/mask-rules/tuned-small.toml"
    now = {p.name: p.values["lr"] for p in load_table("mask-rules", "small").presets}
    assert now == {**shipped, "random-nc5-frozen": 0.123}
    assert before == {path: path.read_bytes() for path in (tmp_path / "tables").rglob("*.toml")}


@pytest.mark.parametrize("by_pip", [False, True])
def test_the_app_that_flower_gets_is_that_of_the_checkout(
    by_pip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "INSTALLED", by_pip)
    app = write_app(tmp_path / "app")
    made = tomllib.loads((app / "pyproject.toml").read_text())
    assert made["tool"]["flwr"] == PROJECT["tool"]["flwr"]
    assert made["project"].keys() >= {"name", "version", "description", "license"}
    for pattern in PROJECT["tool"]["flwr"]["app"]["fab-include"]:
        files = {path.relative_to(ROOT) for path in ROOT.glob(pattern)}
        assert files and files == {path.relative_to(app) for path in app.glob(pattern)}
    assert not list(app.rglob("*.safetensors"))


def test_flower_is_given_a_folder_with_nothing_but_the_app(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = []

    def stream(command: list[str], environment: dict[str, str]) -> None:
        app = Path(command[command.index("run") + 1])
        given.append((app, {path.name for path in app.iterdir()}, environment[CHECKOUT_VARIABLE]))

    superlink_that(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(superlink.SuperLink, "wait", lambda self: None)
    monkeypatch.setattr(engine, "_stream", stream)
    engine.run_on_flower(RunConfig(num_clients=10), client_cpus=1, client_gpus=0.0)
    ((app, files, checkout),) = given
    assert app != ROOT and files == {*installed.ROOMS, "pyproject.toml"}
    assert checkout == str(ROOT)  # whose history says at which commit the run was


def test_flowers_commands_are_found_where_pip_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (flower_scripts() / "flower-superlink").is_file()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "flwr").touch()
    recorded = PackagePath("bin/flwr")
    recorded.dist = _Distribution(tmp_path)  # type: ignore[assignment]
    monkeypatch.setattr(installed, "files", lambda _: [PackagePath("flwr/app.py"), recorded])
    assert flower_scripts() == tmp_path / "bin"
    monkeypatch.setattr(installed, "files", lambda _: None)  # no record
    assert flower_scripts() == Path(sys.executable).parent


class _Distribution:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def locate_file(self, path: PackagePath) -> Path:
        return self._folder / path
