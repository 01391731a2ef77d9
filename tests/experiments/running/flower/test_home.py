"""The folder of a run: short enough for sockets, and gone with what works in it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.running.flower import home as homes
from experiments.running.flower.home import remove_stale_homes, run_home
from experiments.running.flower.processes import end_processes, processes_of
from fedta_app.errors import RunError
from tests.experiments.running.killing import runs

DEAD = 2**22 + 1  # above the largest process id of Linux
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test, short enough for sockets, and the only one."""
    monkeypatch.setattr(homes, "_LONGEST", 1000)
    monkeypatch.setattr(homes.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(homes, "_SHORT", str(tmp_path))
    return tmp_path


def test_a_home_lies_in_the_temporary_folder_and_goes(temporary: Path) -> None:
    with run_home() as home:
        assert home.parent == temporary
        (home / "ray").mkdir()
        (home / "ray" / "log").write_text("x")
    assert not list(temporary.iterdir())
    with pytest.raises(KeyboardInterrupt), run_home():
        raise KeyboardInterrupt
    assert not list(temporary.iterdir())


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the temporary folder one whose path is too long for Ray's sockets."""
    folder = tmp_path / ("x" * 80)
    folder.mkdir()
    monkeypatch.setattr(homes.tempfile, "gettempdir", lambda: str(folder))


@pytest.mark.usefixtures("long")
def test_a_long_temporary_folder_is_not_used_for_sockets() -> None:
    with run_home() as home:
        assert home.parent == Path("/tmp")
        session = "session_2026-11-25_21-58-16_146802_4194304"
        assert len(f"{home}/ray/{session}/sockets/plasma_store") <= 107
    assert not home.exists()


@pytest.mark.usefixtures("long")
def test_without_a_folder_that_fits_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "_SHORT", "/proc")
    with pytest.raises(RunError) as refused, run_home():
        pass
    assert "too long for Ray's sockets, and /proc cannot be written to" in str(refused.value)
    assert "set TMPDIR to a folder" in str(refused.value)


def stale(folder: Path, owner: str | None) -> Path:
    folder.mkdir()
    if owner is not None:
        (folder / homes._OWNER).write_text(owner)
    return folder


def test_only_stale_folders_of_this_user_and_machine_are_removed(temporary: Path) -> None:
    """Dangling links, files, other users' folders, other machines' runs: all are left alone."""
    gone = stale(temporary / "fedta-aaaaaaaa", homes._owner(DEAD))
    (temporary / "fedta-bbbbbbbb").symlink_to(temporary / "nowhere")
    (temporary / "fedta-cccccccc").write_text("mine")
    precious = stale(temporary / "precious", homes._owner(DEAD))
    (temporary / "fedta-dddddddd").symlink_to(precious)
    for letter, owner in {
        "e": homes._owner(), "f": f"elsewhere {DEAD}", "g": None, "h": "", "i": "x \u00b2",
        "j": f"{homes._owner()}0" * 20,
    }.items():  # fmt: skip
        stale(temporary / f"fedta-{letter * 8}", owner)
    foreign = stale(temporary / "fedta-zzzzzzzz", homes._owner(DEAD))
    if os.getuid() == 0:
        os.chown(foreign, 54321, 54321)  # a user without a name
    before = {path.name for path in temporary.iterdir()}
    remove_stale_homes()
    left = {path.name for path in temporary.iterdir()}
    removed = {gone.name} | ({foreign.name} if os.getuid() else set())
    assert before - left == removed
    assert (precious / homes._OWNER).exists()


@LINUX
def test_what_works_in_a_home_is_found_and_ended(tmp_path: Path) -> None:
    """Also a grandchild in a session of its own that does not care about signals to end."""
    ready = tmp_path / "ready"
    stubborn = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)"  # noqa: E501
    environment = {**os.environ, "FLWR_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", parent], env=environment, check=True)
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**environment, "FLWR_HOME": f"{tmp_path}-other"},
    )
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():  # until then it would end at the first signal
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(processes_of(tmp_path)) == 1
        end_processes(tmp_path)
        assert not processes_of(tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


RUNNER = """
import os, subprocess, sys, time
from pathlib import Path
from experiments.running.flower.processes import guarded
home = Path(sys.argv[1])
with guarded(home):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    # As Ray's workers, which write over their environment: its parent has the mark.
    bare = f"import subprocess; subprocess.Popen({sleeper!r}, env=dict()).wait()"
    marked = {**os.environ, "FLWR_HOME": str(home)}
    subprocess.Popen([sys.executable, "-c", bare], env=marked)
    grandchild = f"import subprocess; subprocess.Popen({sleeper!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", grandchild], env=marked)
    print("ready", flush=True)
    if sys.argv[2] != "end":
        time.sleep(60)
"""


SLOW = pytest.mark.slow


@LINUX
@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=SLOW), pytest.param("end", marks=SLOW)],
)
def test_what_a_runner_started_ends_with_it(tmp_path: Path, how: signal.Signals | str) -> None:
    """Whether it is killed, asked to end, or ends by itself: also what runs in another session."""
    home = tmp_path / "home"
    home.mkdir()
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(home), str(how)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    while len(working := processes_of(home)) < 3 and how != "end":
        time.sleep(0.05)  # the last one has just been started
    if isinstance(how, signal.Signals):
        os.kill(runner.pid, how)
    runner.wait(timeout=20)
    deadline = time.monotonic() + 20
    while home.exists() or any(runs(pid) for pid in working):
        assert time.monotonic() < deadline, working
        time.sleep(0.05)
    runner.stdout.close()
