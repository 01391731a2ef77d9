"""The notebook for Colab: what it installs and says, and all its cells without a GPU."""

import ast
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.running.presets import select
from experiments.running.scales import load_scale

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOK = ROOT / "results" / "colab.ipynb"
APP = ["fedta_app", "engine", "client_app", "strategies", "server_app", "experiments"]


def source(name: str) -> str:
    """Return the source of a cell by its id."""
    (found,) = (c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.id == name)
    return str(found)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, with an environment that the cells may change."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def executed(*names: str, **changed: Any) -> dict[str, Any]:
    """Execute cells in this process, after the settings with some of them changed."""
    names_of: dict[str, Any] = {}
    exec(source("settings"), names_of)
    names_of |= {"REPOSITORY": "https://example.org/fedta", **changed}
    for name in ("places", *names):
        exec(source(name), names_of)
    return names_of


def test_the_settings_come_first_and_every_one_is_used() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert next(cell.id for cell in cells if cell.cell_type == "code") == "settings"
    statements = ast.parse(source("settings")).body
    assert all(isinstance(statement, ast.Assign) for statement in statements)
    names = [statement.targets[0].id for statement in statements]  # type: ignore[attr-defined]
    assert names[0] == "REPOSITORY"
    rest = "\n".join(cell.source for cell in cells if cell.cell_type == "code"
                     and cell.id != "settings")  # fmt: skip
    for name in names:
        assert re.search(rf"\b{name}\b", rest), name
    assert "github.com" not in rest and ".[" not in rest and "dev" not in rest.split()


def test_nothing_that_was_not_measured_is_committed() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_the_presets_that_it_tunes_are_those_of_the_table() -> None:
    names: dict[str, Any] = {}
    exec(source("settings"), names)
    table, presets = select(names["TABLE"])
    assert names["TUNE"] == [preset.name for preset in presets]
    assert table.seeds == names["SEEDS"]


def test_the_address_has_to_be_set() -> None:
    with pytest.raises(ValueError, match="set REPOSITORY, in the first cell"):
        executed("install", REPOSITORY="https://github.com/OWNER/fedta")


def test_it_installs_what_a_run_needs_around_the_torch_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def remember(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="abc123\n")

    monkeypatch.setattr(subprocess, "run", remember)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # a fresh machine
    executed("install")
    (clone,) = (command for command in commands if "clone" in command)
    assert "https://example.org/fedta" in clone
    (pip,) = (command for command in commands if "pip" in command)
    assert pip[-2:] == ["--editable", f"{tmp_path}/fedta-checkout[tune]"]
    kept = (tmp_path / "constraints.txt").read_text().splitlines()
    assert f"torch=={version('torch')}" in kept and f"torchvision=={version('torchvision')}" in kept
    # A later session takes the commit of the first one.
    assert (tmp_path / "fedta" / "commit").read_text() == "abc123\n"
    assert [*commands[-2][3:], *commands[2][3:]] == ["checkout", "--quiet", "abc123"] * 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    commands.clear()
    executed("install")
    assert not [command for command in commands if "pip" in command or "rev-parse" in command]


def test_the_small_scale_s_weights_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    commands: list[list[str]] = []

    def remember(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="abc123\n")

    monkeypatch.setattr(subprocess, "run", remember)
    executed("install", SCALE="small")
    made = Path(commands[-1][-1])
    assert commands[-1][1:3] == ["-m", "experiments.pretraining.saliency"]
    assert made == Path(load_scale("small").values["weights"]).expanduser()
    made.parent.mkdir(parents=True)
    made.touch()
    commands.clear()
    executed("install", SCALE="small")
    assert not [command for command in commands if "experiments.pretraining.saliency" in command]


def with_command(tmp_path: Path, program: str) -> dict[str, Any]:
    """Return the names of the notebook, where the commands of fedta are a program of our own."""
    folder = tmp_path / "fedta-checkout" / "experiments"
    folder.mkdir(parents=True)
    (folder / "__main__.py").write_text(program)
    (folder / "tables").mkdir()
    (tmp_path / "fedta").mkdir(exist_ok=True)
    (tmp_path / "fedta" / "commit").write_text("abc123\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", lambda command, **_: None)
        return executed("install")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(3, "run all cells again"), (130, "run all cells again"), (2, r"did not work \(status 2\)")],
)
def test_a_command_that_does_not_finish_stops_the_notebook(
    tmp_path: Path, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = with_command(tmp_path, f"import sys\nprint(sys.argv[1:])\nsys.exit({status})")
    with pytest.raises(RuntimeError, match=sentence):
        names["fedta"]("run", "smoke", "--jobs", 2)
    assert "['run', 'smoke', '--jobs', '2']" in capsys.readouterr().out


def test_an_interrupt_lets_the_run_end_its_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    names = with_command(
        tmp_path,
        "import pathlib, sys, time\ntry:\n    print('training')\n"
        "    pathlib.Path('trains').touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('stopped after this round')\n    sys.exit(130)\n",
    )
    main = threading.main_thread().ident
    assert main is not None
    # A shell starts what it puts into the background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupt() -> None:
        while not (tmp_path / "fedta-checkout/trains").exists():
            time.sleep(0.05)
        time.sleep(0.5)  # until it sleeps, and the notebook waits for it
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(RuntimeError, match="run all cells again"):
        names["fedta"]("run", "smoke")
    assert "training\nstopped after this round\n" in capsys.readouterr().out


def test_the_full_scale_wants_a_gpu_and_each_choice_has_its_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = with_command(tmp_path, "import sys\nprint(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="this scale needs a GPU"):
        exec(source("cost"), dict(names))
    small = {"SCALE": "small", "SCALED": ["--scale", "small"]}
    exec(source("cost"), {**names, **small})
    said = capsys.readouterr().out
    assert "GPU: none" in said and "plan six-models --scale small --seeds 5" in said
    add_gpu(tmp_path / "bin", monkeypatch)
    exec(source("cost"), dict(names))
    said = capsys.readouterr().out
    assert "GPU: Tesla T4, 15360 MiB" in said
    assert "plan six-models --scale blocks --seeds 5" in said


def add_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program on the PATH that says that there is a GPU."""
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB'\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin:{os.environ['PATH']}")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """This working tree, as a repository of one commit."""
    folder = tmp_path / "repository"
    for name in APP:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(folder)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "All"]):
        subprocess.run([*git, *command], check=True)
    return folder


def run_all(tmp_path: Path, **settings: Any) -> str:
    """Run all cells in a kernel of their own, and return what they printed."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.id == "settings")
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "image/png" in outputs[-1].data
    assert "text/html" in outputs[-2].data
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # of the kernel and its event loop
def test_all_cells_run_and_run_again_after_a_disconnect(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    add_gpu(tmp_path / "bin", monkeypatch)
    settings = {
        "REPOSITORY": str(repository), "TABLE": "demo", "SCALE": "full", "SEEDS": 1,
        "TUNE": ["fedavg"], "TRIALS": 1,
    }  # fmt: skip
    said = run_all(tmp_path, **settings)
    assert "8 of 8 cells are finished" in said and "trial 0: lr = " in said
    assert "3 of 3 cells are finished" in said
    checkout, kept = tmp_path / "fedta-checkout", tmp_path / "fedta"
    tuned = (checkout / "experiments/tables/demo/tuned.toml").read_text()
    assert tuned.count("lr = ") == 1
    assert (kept / "demo.zip").exists() and (kept / "results/tuning/demo-fedavg").is_dir()
    # The machine is gone, and with it all that is not on Drive; the repository has a new commit.
    shutil.rmtree(checkout)
    (repository / "experiments/__main__.py").write_text("raise SystemExit('another version')\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(repository)]
    subprocess.run([*git, "commit", "--quiet", "-a", "-m", "Newer"], check=True)
    again = run_all(tmp_path, **settings)
    assert again.count("finished before") == 11 and "train round" not in again
    assert "3 cells, 3 finished" in again  # `plan` knows what was tuned
    assert (checkout / "experiments/tables/demo/tuned.toml").read_text() == tuned
