"""One run on Flower's simulation engine, by `flwr run` with a SuperLink of its own.

`flwr run` alone leaves a SuperLink running and installs a second copy of every dependency. Here the
SuperLink uses the packages that are already installed, and ends with the run or with this process.
`flwr run` exits with 0 even when the run fails: summary.json says how it ended.
"""

import math
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from experiments import ROOT
from experiments.installed import write_app
from experiments.running.cells import in_any_folder
from experiments.running.flower.superlink import CONNECTION, SCRIPTS, end, superlink_for
from fedta_app.config import RunConfig, to_toml
from fedta_app.device.cpus import usable_cpus
from fedta_app.progress import phase
from strategies.nodes import num_nodes

# Flower's simulation polls every node ten times a second. With more clients than this, each node
# stands for several of them.
MOST_NODES = 200
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
    with superlink_for(app or ROOT) as link:
        folder = app or write_app(link.home / "app")
        values = link.home / "run.toml"
        values.write_text(run_config, encoding="utf-8")
        link.wait()
        command = [
            str(SCRIPTS / "flwr"), "run", str(folder), CONNECTION, "--stream",
            "--run-config", str(values), "--federation-config", federation,
        ]  # fmt: skip
        _stream(command, link.environment)


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
        end(process)
        process.stdout.close()
