"""A server and three nodes over TLS with keys: bytes by density, and a node that is killed.

    python -m benchmarks.endurance.machines [--rounds 6] [--json FILE]

Each is a process of Flower's deployment engine on this machine, started by the scripts of the
folder `deployment`, and each node has images of its own. Nodes reach the server through a relay
that counts what passes. For each density, a run of so many rounds; then one in which a node is
killed with -9, and started again by its script. It counts from the kill to the end of the first
round in which the node took part again.
"""

import argparse
import asyncio
import contextlib
import csv
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.processes import ROOT, exit_on_sigterm
from benchmarks.harness.report import facts, write
from fedta_app.seeding import numpy_generator

PORT, RELAY = 9444, 9446
DENSITIES = (1.0, 0.5, 0.1, 0.01)
_SCRIPTS = Path(sys.executable).parent
_PATIENCE = 900.0  # seconds without what is waited for
_CLASSES = ("circle", "line", "point")
_RUN: Mapping[str, Any] = {
    "dataset": "folder", "partition": "nodes", "model": "vit_cifar", "weights": "random",
    "image-size": 32, "num-clients": 3, "fraction-train": 1.0, "local-steps": 2, "batch-size": 8,
    "eval-every": 100, "eval-size": 30, "threads": 1, "head": "ridge", "keep-model": "none",
}  # fmt: skip


class Relay:
    """Passes on what comes to a port, in both directions, and counts the bytes.

    Attributes
    ----------
    up, down : int
        Bytes to the server, and from it.
    """

    def __init__(self, port: int, server: int) -> None:
        self.up = self.down = 0
        self._port, self._server = port, server
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    async def _serve(self) -> None:
        listener = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        async with listener:
            await listener.serve_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there = await asyncio.open_connection("127.0.0.1", self._server)
            await asyncio.gather(
                self._pass(reader, there[1], "up"), self._pass(there[0], writer, "down")
            )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                setattr(self, way, getattr(self, way) + len(data))
                writer.write(data)
                await writer.drain()
        writer.close()


class Machines:
    """The scripts of the folder `deployment`, each process with a home of its own.

    Parameters
    ----------
    folder : Path
        Of everything that they write.
    port : int
        At which nodes find the server.
    """

    def __init__(self, folder: Path, port: int = PORT) -> None:
        self.folder = folder
        self._port = port
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, home: str) -> dict[str, str]:
        """Return the environment of a process, with a home of Flower's below the folder."""
        path = f"{_SCRIPTS}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "FLWR_HOME": str(self.folder / home)}

    def script(self, name: str, *words: object) -> None:
        """Run a script of the server to its end."""
        command = [str(ROOT / "deployment" / name), *map(str, words)]
        subprocess.run(command, check=True, timeout=120, env=self.environment("server"))

    def start(self, label: str, *words: object, home: str) -> None:
        """Start a process that writes to <label>.log."""
        with (self.folder / f"{label}.log").open("ab") as log:
            self.started[label] = subprocess.Popen(
                list(map(str, words)), cwd=self.folder, env=self.environment(home),
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def serve(self) -> None:
        """Start the server."""
        script = ROOT / "deployment/server.sh"
        self.start("server", script, self.folder / "keys", PORT, home="server")
        self.wait_for("server", "Uvicorn running")

    def node(self, number: int, keys: str = "keys") -> None:
        """Start a node, with images and results of its own."""
        own = {"results-dir": f"runs{number}", "image-folder": f"images{number}"}
        text = " ".join(f'{key}="{self.folder / value}"' for key, value in own.items())
        where = (self.folder / keys, f"127.0.0.1:{self._port}", number, text)
        self.start(f"node{number}", ROOT / "deployment/node.sh", *where, home=f"node{number}")

    def run(self, values: Mapping[str, Any]) -> Path:
        """Start a run, whose output goes to run.log; return where its directory will be."""
        values = {
            **values, "results-dir": str(self.folder / "runs"),
            "nodes-file": str(self.folder / "keys/nodes.toml"),
            "image-folder": str(self.folder / "images"),
        }  # fmt: skip
        text = (f"{key} = {value!r}\n" for key, value in values.items())
        (self.folder / "run.toml").write_text("".join(text))
        (self.folder / "run.log").unlink(missing_ok=True)
        command = ("flwr", "run", ROOT, "fedta", "--stream", "--run-config")
        self.start("run", *command, self.folder / "run.toml", home="server")
        return self.folder / "runs" / str(values["name"]) / "seed0"

    def kill(self, label: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a process, and those that it started."""
        process = self.started.pop(label)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, how)
        process.wait(timeout=60)

    def said(self, label: str) -> str:
        """Return what a process has written so far."""
        return (self.folder / f"{label}.log").read_text(errors="replace")

    def wait_for(self, label: str, text: str) -> None:
        """Wait until a process has written a text."""
        self.wait_until(lambda: text in self.said(label), label)

    def wait_until(self, holds: Callable[[], bool], label: str) -> None:
        """Wait for something; raise RuntimeError with the end of a log if it takes too long."""
        end = time.monotonic() + _PATIENCE
        while not holds():
            if time.monotonic() > end:
                raise RuntimeError(self.said(label)[-3000:])
            time.sleep(0.5)


@contextlib.contextmanager
def machines(folder: Path, port: int = PORT, size: int = 8) -> Iterator[Machines]:
    """Make keys and images of some pixels a side for a server and three nodes; end all processes.

    Each node has images of two classes.
    """
    _images(folder / "images", "train", [0, 1, 2] * 10, size)  # the server's, to measure on
    _images(folder / "images", "test", [0, 1, 2] * 20, size)
    for number in range(3):
        _images(folder / f"images{number}", "train", [number, (number + 1) % 3] * 15, size)
    found = Machines(folder, port)
    try:
        found.script("certificates.sh", folder / "keys", "127.0.0.1", 3)
        yield found
    finally:
        for label in list(found.started):
            found.kill(label)


def _images(folder: Path, split: str, labels: list[int], size: int) -> None:
    """Write an image of noise for each label, brighter by class, and a folder for each class."""
    generator = numpy_generator("images", folder.name, split)
    for name in _CLASSES:
        (folder / split / name).mkdir(parents=True)
    for number, label in enumerate(labels):
        pixels = generator.integers(0, 80, (size, size, 3)) + 80 * label
        path = folder / split / _CLASSES[label] / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def rounds(run: Path) -> list[dict[str, str]]:
    """Return the rows of the rounds of training that a run has recorded so far."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["phase"] == "train"]


def traffic(there: Machines, relay: Relay, density: float, number: int) -> dict[str, float]:
    """Return megabytes of a round with a random mask of a density: counted, and in metrics.csv.

    From the end of the first round to that of the last.
    """
    rule = {"mask-rule": "random", "sparsity": 1 - density} if density < 1 else {}
    run = there.run({**_RUN, **rule, "name": f"d{density:g}", "num-server-rounds": number})
    there.wait_until(lambda: len(rounds(run)) >= 1, "run")
    up, down, began = relay.up, relay.down, time.monotonic()
    there.wait_until(lambda: len(rounds(run)) >= number, "run")
    up, down, seconds = relay.up - up, relay.down - down, time.monotonic() - began
    there.wait_for("run", "finished:")
    there.kill("run")
    last = rounds(run)[-1]
    return {
        "density": density, "seconds-a-round": seconds / (number - 1),
        "up-mb": up / (number - 1) / 1e6, "down-mb": down / (number - 1) / 1e6,
        "up-mb-recorded": float(last["bytes_up"]) / 1e6,
        "down-mb-recorded": float(last["bytes_down"]) / 1e6,
    }  # fmt: skip


def recovery(there: Machines, keys: Mapping[str, Any]) -> dict[str, float]:
    """Kill node 1 in a run; return how long it was missing, in seconds and in rounds."""
    run = there.run({**keys, "name": "recovery"})
    there.wait_until(lambda: len(rounds(run)) >= 2, "run")
    began = time.monotonic()
    there.kill("node1")
    there.node(1)
    there.wait_until(lambda: any(row["clients_ok"] == "2" for row in rounds(run)), "run")
    there.wait_until(lambda: rounds(run)[-1]["clients_ok"] == "3", "run")
    seconds = time.monotonic() - began
    there.wait_for("run", "finished:")
    missed = sum(row["clients_ok"] == "2" for row in rounds(run))
    return {"seconds": seconds, "rounds-without-it": missed}


def main(arguments: list[str] | None = None) -> None:
    """Print both tables, and write them to a file when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    relay = Relay(RELAY, PORT)
    with (
        tempfile.TemporaryDirectory(prefix="machines-") as name,
        machines(Path(name), RELAY, 32) as there,
    ):
        there.serve()
        there.script("register.sh", there.folder / "keys", PORT)
        for number in range(3):
            there.node(number)
        rows = []
        for density in DENSITIES:
            rows.append(traffic(there, relay, density, options.rounds))
            print("  ".join(f"{key} {value:.3g}" for key, value in rows[-1].items()), flush=True)
        back = recovery(there, {**_RUN, "num-server-rounds": 30, "strategy": "scaffold"})
        print("  ".join(f"{key} {value:.3g}" for key, value in back.items()), flush=True)
    write(options.json, {**facts(), "traffic": rows, "recovery": back})


if __name__ == "__main__":
    main()
