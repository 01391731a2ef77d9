"""Runs on Flower's engine in a shell that is set up for something else; Ctrl-C at their start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.running.flower import home as homes
from experiments.running.flower.processes import processes_of

ROOT = Path(__file__).resolve().parents[4]
NOWHERE = "http://127.0.0.1:9"
HOSTILE = {
    "http_proxy": NOWHERE, "https_proxy": NOWHERE, "grpc_proxy": NOWHERE, "all_proxy": NOWHERE,
    "RAY_ADDRESS": "10.255.255.1:6379", "FLWR_DATABASE": "/proc/nowhere",
    "FLWR_HOME": "/proc/nowhere", "LC_ALL": "POSIX", "HOME": "/proc/nowhere",
    "CUDA_VISIBLE_DEVICES": "", "PYTHONSTARTUP": "/proc/nowhere",
}  # fmt: skip


def start(folder: Path, rounds: int, **environment: str) -> "subprocess.Popen[str]":
    values = {"num-server-rounds": rounds, "eval-size": 50, "num-clients": 10}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "experiments", "run", "demo/fedavg", "--results-dir", folder,
         *(f"--set={key}={value}" for key, value in values.items())],
        cwd=ROOT, env={**os.environ, **environment}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def left_of(pid: int) -> list[Path]:
    """Return the folders that a runner with this process id has not removed."""
    places = {Path("/tmp"), Path(homes.tempfile.gettempdir())}
    owner = homes._owner(pid)
    files = [file for place in places for file in place.glob(f"fedta-????????/{homes._OWNER}")]
    return [file.parent for file in files if file.read_text() == owner]


@pytest.mark.slow
def test_a_run_does_not_care_what_the_shell_is_set_up_for(tmp_path: Path) -> None:
    """Proxies, another cluster, no home, a long folder with an umlaut, in the C locale."""
    long = tmp_path / ("\u00fc" * 60)
    long.mkdir()
    runner = start(tmp_path / "\u00fcmlaut", 1, TMPDIR=str(long), **HOSTILE)
    output, _ = runner.communicate(timeout=290)
    assert runner.returncode == 0, output
    assert "Flower and Ray: FLWR_DATABASE, FLWR_HOME, RAY_ADDRESS\n" in output
    last = output.splitlines()[-1]
    assert last == f"run directory: {tmp_path}/\u00fcmlaut/demo/fedavg/seed0"
    assert not left_of(runner.pid)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="user namespaces")
def test_a_user_without_a_name_or_a_home_runs(tmp_path: Path) -> None:
    """As in a container, beside what another user left in the temporary folder."""
    alone = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    nameless = {k: v for k, v in os.environ.items() if k not in ("HOME", "USER", "LOGNAME")}
    done = subprocess.run(
        [*alone, sys.executable, "-m", "experiments", "run", "demo/fedavg",
         "--results-dir", tmp_path / "runs", "--data-dir", tmp_path / "data",
         "--set=num-server-rounds=1", "--set=eval-size=50", "--set=num-clients=10"],
        cwd=ROOT, env=nameless, text=True, capture_output=True, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
@pytest.mark.parametrize("seconds", [0.5, 4.0, 10.0])
def test_the_first_ctrl_c_ends_a_run_that_starts(tmp_path: Path, seconds: float) -> None:
    """Counted from the line before the SuperLink starts: Ray starts some seconds after it."""
    runner = start(tmp_path, 500)
    assert runner.stdout is not None
    for line in runner.stdout:
        if line.startswith("clients at a time"):
            break
    time.sleep(seconds)
    working = left_of(runner.pid)
    os.kill(runner.pid, signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert not left_of(runner.pid)
    for home in working:
        assert not processes_of(home)
