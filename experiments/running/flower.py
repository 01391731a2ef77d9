"""One run on Flower's simulation engine, by `flwr run` with a SuperLink of its own.

`flwr run` alone leaves a SuperLink running and installs a second copy of every dependency. Here the
SuperLink uses the packages that are already installed, and ends with the run or with this process.
`flwr run` exits with 0 even when the run fails: summary.json says how it ended.
"""

import math
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import INSTALLED, ROOT
from experiments.installed import flower_scripts, write_app
from experiments.running.signals import die_with_parent
from fedta_app.config import RunConfig, to_toml
from fedta_app.errors import RunError
from fedta_app.files import remove_tree
from fedta_app.runs.provenance import CHECKOUT_VARIABLE
from strategies.nodes import num_nodes

SCRIPTS = flower_scripts()
_START_TIMEOUT = 60.0  # seconds
# Flower's simulation polls every node ten times a second. With more clients than this, each node
# stands for several of them.
MOST_NODES = 200
_CONNECTION = "fedta"
_HOME_PREFIX = "fedta-flwr-"
# Flower's own log lines, those of Ray's actors included, are hidden, except errors.
_COLOUR = r"(\x1b\[\d+m)*"
_NOISE = re.compile(
    rf"{_COLOUR}(\(ClientAppActor pid=\d+\){_COLOUR}\s+)?{_COLOUR}(DEBUG|INFO|WARNING)\b"
    r"|Using SuperLink|Successfully (started|installed)"
)


def run_on_flower(config: RunConfig, *, client_cpus: int, client_gpus: float) -> None:
    """Run a configuration to its end on the simulation engine, and print the app's output.

    Parameters
    ----------
    client_cpus, client_gpus : float
        The CPUs and the share of a GPU for each client, which decide how many run at a time.

    Raises
    ------
    RunError
        When the SuperLink or the run cannot be started.
    """
    if not config.clients_per_node:
        config = config.with_values(clients_per_node=math.ceil(config.num_clients / MOST_NODES))
    nodes = num_nodes(config.num_clients, config.clients_per_node)
    federation = (
        f"num-supernodes={nodes} client-resources-num-cpus={client_cpus} "
        f"client-resources-num-gpus={float(client_gpus)}"
    )
    run_app(None if INSTALLED else ROOT, to_toml(config), federation)


def run_app(app: Path | None, run_config: str, federation: str) -> None:
    """Run a Flower app of this machine in a SuperLink of its own; see `run_on_flower`.

    Parameters
    ----------
    app : Path or None
        The folder of the app; None for fedta as it is installed.
    """
    _remove_stale_homes()
    with tempfile.TemporaryDirectory(prefix=f"{_HOME_PREFIX}{os.getpid()}-") as folder:
        home = Path(folder)
        app = app or write_app(home / "app")
        values = home / "run.toml"
        values.write_text(run_config)
        environment = {
            **os.environ,
            # Flower starts its scripts by name.
            "PATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", "")]),
            "FLWR_HOME": folder,
            CHECKOUT_VARIABLE: str(app),  # Flower runs a copy without the history
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PYTHONUNBUFFERED": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        with _superlink(home, environment):
            command = [
                str(SCRIPTS / "flwr"), "run", str(app), _CONNECTION, "--stream",
                "--run-config", str(values), "--federation-config", federation,
            ]  # fmt: skip
            _stream(command, environment)


def _remove_stale_homes() -> None:
    """Remove the folders that killed runs of this user left in the temporary folder."""
    if os.name != "posix":
        return  # elsewhere neither owners of files nor signal 0 mean what is asked here
    for home in Path(tempfile.gettempdir()).glob(f"{_HOME_PREFIX}*-*"):
        owner = home.name.removeprefix(_HOME_PREFIX).split("-")[0]
        if owner.isdecimal() and _is_own_folder(home) and not _alive(int(owner)):
            remove_tree(home)


def _is_own_folder(path: Path) -> bool:
    """Return whether this user made the folder; anybody may put anything into a shared one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no number of a process
    return True


@contextmanager
def _superlink(home: Path, environment: dict[str, str]) -> Iterator[None]:
    port = _free_port()
    log = home / "superlink.log"
    home.joinpath("config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
        f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [
        str(SCRIPTS / "flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1",
        "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C goes to this process, which asks the run to stop
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
        try:
            _wait_until_healthy(process, port, log)
            yield
        finally:
            _end(process)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    tail = log.read_text(errors="replace").strip().splitlines()[-1:]
    raise RunError(f"Flower's SuperLink did not start: {' '.join(tail) or 'no output'}")


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process that may have ended by itself."""
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_chatter(line: str) -> bool:
    """Return whether a line is blank, or Flower's own and less severe than an error."""
    return not line.strip() or _NOISE.match(line) is not None


def _stream(command: list[str], environment: dict[str, str]) -> None:
    """Run `flwr run --stream` and print its lines, except those of `is_chatter`."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if not is_chatter(line):
                print(line, end="", flush=True)
        process.wait()
    finally:
        _end(process)
