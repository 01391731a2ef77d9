"""A simulation on two Ray nodes, of which one cannot map the server's memory."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments import load_run
from experiments.running.flower.environment import child_environment
from tests.runs import summary_of

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
RAY_PORT, PORT = 6399, 9455
RUN = {
    "num-clients": 4, "fraction-train": 1.0, "num-server-rounds": 3, "local-steps": 2,
    "eval-every": 3, "eval-size": 60, "head": "ridge", "mask-rule": "least-sensitive",
    "calibration-rounds": 1, "calibration-examples": 10, "threads": 1,
}  # fmt: skip
# A process of another name space has another /proc, in which the server's memory has no name.
ELSEWHERE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def can_be_elsewhere() -> bool:
    """Return whether this user may start a process that does not see the others."""
    if sys.platform != "linux" or not shutil.which("unshare"):
        return False
    return subprocess.run([*ELSEWHERE, "true"], check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def started(log: Path, environment: dict[str, str], *words: object) -> Iterator[None]:
    """Start a process and those that it starts, and end all of them."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            list(map(str, words)), cwd=log.parent, env=environment, stdin=subprocess.DEVNULL,
            stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(2)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def wait_for(log: Path, text: str) -> None:
    end = time.monotonic() + 120
    while text not in log.read_text(errors="replace"):
        assert time.monotonic() < end, log.read_text(errors="replace")[-2000:]
        time.sleep(0.5)


@pytest.mark.skipif(not can_be_elsewhere(), reason="name spaces need Linux and a user who may")
def test_actors_that_do_not_see_the_servers_memory_get_bytes(tmp_path: Path) -> None:
    home = Path("/tmp") / f"fedta-cluster-{os.getpid()}"  # short: Ray's sockets lie below it
    home.mkdir()
    environment = {**child_environment(home, SCRIPTS, dict(os.environ))}
    environment["RAY_ADDRESS"] = f"127.0.0.1:{RAY_PORT}"
    (home / "config.toml").write_text(
        f'[superlink.cluster]\naddress = "127.0.0.1:{PORT}"\ninsecure = true\n'
    )
    values = {**RUN, "name": "cluster", "results-dir": str(tmp_path / "flower")}
    (home / "run.toml").write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    ray = (SCRIPTS / "ray", "start", "--block", "--num-cpus", 1, "--disable-usage-stats")
    first = (*ray, "--head", "--port", RAY_PORT, "--include-dashboard", "false")
    second = (*ELSEWHERE, *ray, "--address", f"127.0.0.1:{RAY_PORT}")
    superlink = (
        SCRIPTS / "flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1",
        "--port", PORT, "--disable-runtime-dependency-installation",
    )  # fmt: skip
    without_address = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
    try:
        with (
            started(home / "first.log", without_address, *first, "--temp-dir", home / "ray"),
            contextlib.ExitStack() as rest,
        ):
            wait_for(home / "first.log", "Ray runtime started")
            rest.enter_context(started(home / "second.log", without_address, *second))
            wait_for(home / "second.log", "Ray runtime started")
            rest.enter_context(started(home / "superlink.log", environment, *superlink))
            wait_for(home / "superlink.log", "Uvicorn running")
            federation = "num-supernodes=4 client-resources-num-cpus=1"
            result = subprocess.run(
                [
                    SCRIPTS / "flwr", "run", ROOT, "cluster", "--stream", "--run-config",
                    home / "run.toml", "--federation-config", federation,
                ],
                env=environment, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
    finally:
        shutil.rmtree(home, ignore_errors=True)
    assert "finished: train round 3" in result.stdout, result.stdout[-3000:] + result.stderr
    summary = load_run(tmp_path / "flower/cluster/seed0").summary
    assert summary["transport"] == "wire"
    here = summary_of(tmp_path / "here", {**RUN, "engine": "in-process"})
    assert summary["final-weights-sha256"] == here["final-weights-sha256"]
