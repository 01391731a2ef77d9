"""fedta where pip installs it: nothing is missing there, and nothing is written there."""

import contextlib
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
from experiments.running.flower import engine
from experiments.running.presets import load_table
from experiments.running.tuned import write_choice
from fedta_app.config import RunConfig

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
            if path.is_file() and path.suffix not in (".py", ".pyc")
        }
        found = {path for pattern in packaged.get(package, ()) for path in folder.glob(pattern)}
        assert found == data, package
        for path in folder.rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_the_records_of_an_installed_package_are_those_of_the_working_directory(
    tmp_path: Path,
) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    shutil.copytree(ROOT / "experiments", site / "experiments")
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


def test_the_app_that_is_made_of_the_packages_is_that_of_the_checkout(tmp_path: Path) -> None:
    app = write_app(tmp_path / "app")
    made = tomllib.loads((app / "pyproject.toml").read_text())
    assert made["tool"]["flwr"] == PROJECT["tool"]["flwr"]
    assert set(made["project"]) == {"name", "version", "description", "license"}
    for pattern in PROJECT["tool"]["flwr"]["app"]["fab-include"]:
        files = {path.relative_to(ROOT) for path in ROOT.glob(pattern)}
        assert files and files == {path.relative_to(app) for path in app.glob(pattern)}
    assert not list(app.rglob("*.safetensors"))


def test_flower_runs_the_app_that_is_made_where_there_is_no_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apps = []

    def stream(command: list[str], environment: dict[str, str]) -> None:
        app = Path(command[command.index("run") + 1])
        apps.append((app, (app / "pyproject.toml").is_file()))

    monkeypatch.setattr(engine, "_superlink", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(engine, "_stream", stream)
    for where in (False, True):
        monkeypatch.setattr(engine, "INSTALLED", where)
        engine.run_on_flower(RunConfig(num_clients=10), client_cpus=1, client_gpus=0.0)
    (checkout, made) = apps
    assert checkout == (ROOT, True)
    assert made[0] != ROOT and made[1]


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
