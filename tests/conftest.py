import gc
import importlib
import os

# The tests are many and small, and run side by side: threads, in this process and in those that
# tests start, would only wait for each other. Torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from fedta_app import progress
from fedta_app.plotting import save_figure
from fedta_app.runs import provenance, session
from server_app import loop as server_loop

# A busy machine is slow now and then. `.ci/run` sets CI: whether a change may land is then decided
# by the same examples each time, and new ones are drawn everywhere else.
settings.register_profile("any machine", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("any machine")

# A hook of git sets them, and git then looks at that checkout wherever a test asks it.
for variable in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
    os.environ.pop(variable, None)

progress._reporter._watched = False  # what is printed does not depend on a machine's speed


def pytest_configure(config: pytest.Config) -> None:
    """Ignore NumPy's deprecations like all others: theirs is a warning of its own class."""
    name = "numpy.exceptions.VisibleDeprecationWarning"
    config.addinivalue_line("filterwarnings", f"ignore::{name}")


def pytest_collection_finish() -> None:
    """Leave what the tests import out of garbage collection, which every run of fedta begins with.

    It would be walked hundreds of times, for a sixth of the time of all tests. That is also so for
    the packages that fedta imports when a run first needs them.
    """
    importlib.import_module("torch.utils.tensorboard")
    # The digits are read and parsed once, and not for each of a thousand runs.
    sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)
    # At its first example hypothesis asks the collector who holds its random numbers. Version 6.100
    # with `derandomize` fails where they are frozen by then.
    given(st.none())(lambda _: None)()
    gc.collect()
    gc.freeze()


UNPACK = Path(__file__).parents[2] / "shared" / "data" / "unpack.py"


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save empty files for figures, whose drawing takes longer than a run of two rounds.

    A test marked `draws` draws them. Those that every run saves are not even laid out.
    """

    def nothing(figure: Figure, *arguments: Any, **options: Any) -> None:
        pass

    def blank(path: Path, *arguments: Any) -> None:
        save_figure(path, Figure())

    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(Figure, "savefig", nothing)
        monkeypatch.setattr(session, "save_curves", blank)
        monkeypatch.setattr(server_loop, "save_partition_figure", blank)


CHECKOUT, ask_git = provenance._ROOT, provenance._git
ask_git_once = cache(ask_git)


@pytest.fixture(autouse=True)
def git_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no four processes for each of a thousand runs: no test changes this checkout."""

    def git(folder: Path, *arguments: str) -> str:
        return (ask_git_once if folder == CHECKOUT else ask_git)(folder, *arguments)

    monkeypatch.setattr(provenance, "_git", git)


@pytest.fixture(autouse=True)
def nothing_is_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk: flushing is for a machine that loses its power, and no test does that."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def cifar100_dir(request: pytest.FixtureRequest) -> Path:
    """A directory with the real CIFAR-100, unpacked once into pytest's cache; skips without it."""
    if not UNPACK.exists():
        pytest.skip("no CIFAR-100 beside the repository")
    directory = request.config.cache.mkdir("cifar100")
    subprocess.run([sys.executable, UNPACK, directory], check=True)
    return directory


@pytest.fixture(autouse=True)
def auto_is_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test what does not ask for a GPU on the CPU, also where there is one."""
    if not {"cuda", "device"} & set(request.fixturenames):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for processes that a test starts


@pytest.fixture
def cuda() -> torch.device:
    """The first CUDA GPU; skips without one."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the first CUDA GPU, skipped without one."""
    if request.param == "cpu":
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("cuda")
    return found
