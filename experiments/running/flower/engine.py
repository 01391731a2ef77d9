"""One run on Flower's simulation engine, by `flwr run` with a SuperLink of its own.

`flwr run` alone leaves a SuperLink running and installs a second copy of every dependency. Here the
SuperLink uses the packages that are already installed, and ends with the run or with this process.
`flwr run` exits with 0 even when the run fails: summary.json says how it ended.
"""

import math
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from experiments import ROOT
from experiments.installed import flower_scripts, write_app
from experiments.running.cells import in_any_folder
from experiments.running.flower.environment import child_environment, redirects
from experiments.running.flower.home import run_home
from experiments.running.signals import die_with_parent
from fedta_app.config import RunConfig, to_toml
from fedta_app.device.cpus import usable_cpus
from fedta_app.errors import RunError
from fedta_app.progress import phase
from fedta_app.runs.provenance import CHECKOUT_VARIABLE
from strategies.nodes import num_nodes

SCRIPTS = flower_scripts()
_START_TIMEOUT = 120.0  # seconds
_END_TIMEOUT = 5.0
# Flower's simulation polls every node ten times a second. With more clients than this, each node
# stands for several of them.
MOST_NODES = 200
_CONNECTION = "fedta"
# Flower's own log lines, those of Ray's actors included, are hidden, except errors.
_COLOUR = r"(\x1b\[\d+m)*"
_NOISE = re.compile(
    rf"{_COLOUR}(\(ClientAppActor pid=\d+\){_COLOUR}\s+)?{_COLOUR}(DEBUG|INFO|WARNING)\b"
    r"|Using SuperLink|Successfully (started|installed)"
)
# Ray's own words, as of a disk that is nearly full, and what a client's process prints.
_FROM_RAY = re.compile(rf"{_COLOUR}\((raylet|\w+ pid=\d+)[^)]*\)")
_TAKEN = "Successfully started"  # the SuperLink has the app
_DIRECTORY = "run directory: "


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
    config = in_any_folder(config)
    if not config.clients_per_node:
        config = config.with_values(clients_per_node=math.ceil(config.num_clients / MOST_NODES))
    nodes = num_nodes(config.num_clients, config.clients_per_node)
    federation = (
        f"num-supernodes={nodes} client-resources-num-cpus={client_cpus} "
        f"client-resources-num-gpus={float(client_gpus)} init-args-num-cpus={usable_cpus()}"
    )
    run_app(None, to_toml(config), federation)


def run_app(app: Path | None, run_config: str, federation: str) -> None:
    """Run a Flower app of this machine in a SuperLink of its own; see `run_on_flower`.

    Parameters
    ----------
    app : Path or None
        The folder of the app; None for fedta itself.
    """
    environment = dict(os.environ)
    if left_out := redirects(environment):
        print(
            f"not passed on to this run's own Flower and Ray: {', '.join(left_out)}",
            file=sys.stderr,
            flush=True,
        )
    with run_home() as home:
        folder = app or write_app(home / "app")
        values = home / "run.toml"
        values.write_text(run_config, encoding="utf-8")
        environment = child_environment(home, SCRIPTS, environment)
        environment[CHECKOUT_VARIABLE] = str(app or ROOT)  # copies are without the history
        with _superlink(home, environment):
            command = [
                str(SCRIPTS / "flwr"), "run", str(folder), _CONNECTION, "--stream",
                "--run-config", str(values), "--federation-config", federation,
            ]  # fmt: skip
            _stream(command, environment)


@contextmanager
def _superlink(home: Path, environment: dict[str, str]) -> Iterator[None]:
    port = _free_port()
    log = home / "superlink.log"
    home.joinpath("config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n'
        f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    command = [
        str(SCRIPTS / "flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1",
        "--port", str(port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            # Ray's actors import what lies in this folder before anything else: another app's
            # client_app, or a checkout that changes during the run.
            cwd=home,
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
    # Not through a proxy, which knows another 127.0.0.1.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with phase("waiting for Flower's SuperLink", sys.stderr):
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with opener.open(f"http://127.0.0.1:{port}/health", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
    ended = process.poll()
    what = f"within {_START_TIMEOUT:g} s" if ended is None else f"(exit status {ended})"
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise RunError(f"Flower's SuperLink did not start {what}: {' '.join(tail) or 'no output'}")


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process that may have ended by itself."""
    process.terminate()
    try:
        process.wait(timeout=_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_chatter(line: str) -> bool:
    """Return whether a line is blank, or Flower's own and less severe than an error."""
    return not line.strip() or _NOISE.match(line) is not None


def _stream(command: list[str], environment: dict[str, str]) -> None:
    """Run `flwr run --stream` and print its lines, except those of `is_chatter`.

    Stdout has the lines of the run alone, whose first and last name its directory; what Ray says is
    on stderr. A run of fedta is over when it names its directory for the second time: how Ray ends
    after that is nobody's concern.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    named = 0
    try:
        # On stderr, because the first line of a run's stdout names its directory.
        with ExitStack() as waiting:
            waiting.enter_context(phase("waiting for Flower to take the app", sys.stderr))
            for line in process.stdout:
                if _TAKEN in line:
                    waiting.close()
                    started = "waiting for Ray and the first clients, which import torch"
                    waiting.enter_context(phase(started, sys.stderr))
                if is_chatter(line):
                    continue
                waiting.close()
                from_ray = _FROM_RAY.match(line) is not None
                print(line, end="", flush=True, file=sys.stderr if from_ray else sys.stdout)
                if line.startswith(_DIRECTORY):
                    named += 1
                    if named == 2:
                        return
        process.wait()
    finally:
        _end(process)
        process.stdout.close()
