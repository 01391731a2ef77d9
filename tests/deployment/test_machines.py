"""A server and three nodes with processes of their own, over TLS; one is killed and comes back."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import load_run
from tests.image_folders import put

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent
PORT = 9444
KEYS = {
    "name": "'machines'", "dataset": "'folder'", "partition": "'nodes'", "image-size": 8,
    "weights": "'random'", "num-clients": 3, "fraction-train": 1.0, "num-server-rounds": 40,
    "local-steps": 2, "eval-every": 20, "eval-size": 100, "head": "'ridge'", "threads": 1,
    "mask-rule": "'least-sensitive'", "calibration-rounds": 1, "calibration-examples": 20,
    "strategy": "'scaffold'",
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        sys.platform != "linux" or not (shutil.which("openssl") and shutil.which("ssh-keygen")),
        reason="the scripts need Linux, openssl and ssh-keygen",
    ),
]


class Machines:
    """The scripts of the folder `deployment`, each process with a home of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, home: str) -> dict[str, str]:
        path = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "FLWR_HOME": str(self.folder / home)}

    def script(self, name: str, *words: object, home: str = "server") -> None:
        command = [str(ROOT / "deployment" / name), *map(str, words)]
        subprocess.run(command, check=True, timeout=120, env=self.environment(home))

    def start(self, label: str, *words: object, home: str) -> None:
        with (self.folder / f"{label}.log").open("ab") as log:
            self.started[label] = subprocess.Popen(
                list(map(str, words)), cwd=self.folder, env=self.environment(home),
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def node(self, number: int, keys: str = "keys", **settings: object) -> None:
        own = {
            "results-dir": self.folder / f"runs{number}",
            "image-folder": self.folder / f"images{number}",
            **settings,
        }
        text = " ".join(f'{key}="{value}"' for key, value in own.items())
        script = ROOT / "deployment/node.sh"
        where = (self.folder / keys, f"127.0.0.1:{PORT}", number, text)
        self.start(f"node{number}", script, *where, home=f"node{number}")

    def kill(self, label: str, how: signal.Signals = signal.SIGKILL) -> None:
        process = self.started.pop(label)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, how)
        process.wait(timeout=60)

    def said(self, label: str) -> str:
        return (self.folder / f"{label}.log").read_text(errors="replace")

    def wait_for(self, label: str, text: str) -> None:
        self.wait_until(lambda: text in self.said(label), label)

    def wait_until(self, holds: Callable[[], bool], label: str) -> None:
        end = time.monotonic() + 900
        while not holds():
            assert time.monotonic() < end, self.said(label)[-3000:]
            time.sleep(0.5)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    found = Machines(tmp_path)
    try:
        yield found
    finally:
        for label in list(found.started):
            found.kill(label)


def test_a_masked_run_over_tls_goes_on_when_a_node_is_killed_and_comes_back(
    machines: Machines,
) -> None:
    folder = machines.folder
    put(folder / "images", "train", [0, 1, 2] * 10, 3)  # the server's, to measure on
    put(folder / "images", "test", [0, 1, 2] * 20, 4)
    for number in range(3):  # each node has images of two classes, which nobody else has
        put(folder / f"images{number}", "train", [number, (number + 1) % 3] * 15, number)
    machines.script("certificates.sh", folder / "keys", "127.0.0.1", 3)
    machines.script("certificates.sh", folder / "others", "127.0.0.1", 3)
    machines.start("server", ROOT / "deployment/server.sh", folder / "keys", PORT, home="server")
    machines.wait_for("server", "Uvicorn running")
    machines.script("register.sh", folder / "keys", PORT)
    for number in range(2):
        machines.node(number)
    # A key that nobody registered, and a certificate of another authority.
    shutil.copy(folder / "keys/ca.crt", folder / "others/known.crt")
    machines.node(2, "others")
    (folder / "run.toml").write_text(
        "".join(f"{key} = {value}\n" for key, value in KEYS.items())
        + f"results-dir = '{folder / 'runs'}'\n"
        + f"nodes-file = '{folder / 'keys/nodes.toml'}'\n"
        + f"image-folder = '{folder / 'images'}'\n"
    )
    run = ("flwr", "run", ROOT, "fedta", "--stream", "--run-config", folder / "run.toml")
    machines.start("run", *run, home="server")
    machines.wait_for("run", "waiting for nodes: 2 of 3 are there")
    machines.wait_for("node2", "certificate")
    machines.kill("node2")
    (folder / "others/known.crt").replace(folder / "others/ca.crt")
    machines.node(2, "others")
    machines.wait_for("node2", "the node ended with status")
    machines.kill("node2")
    machines.node(2)
    metrics = folder / "runs/machines/seed0/metrics.csv"
    machines.wait_until(lambda: metrics.exists() and ",train," in metrics.read_text(), "run")
    machines.kill("node1")
    machines.node(1)
    machines.wait_for("run", "finished:")
    table = load_run(folder / "runs/machines/seed0").metrics
    rounds = table[table["phase"] == "train"]
    assert rounds["clients_ok"].iloc[0] == 3
    assert rounds["clients_ok"].min() == 2 and rounds["clients_ok"].iloc[-1] == 3
    assert rounds["clients_rejected"].sum() == 0
    for number in range(3):
        kept = [path.name for path in (folder / f"runs{number}/machines/seed0/clients").iterdir()]
        assert kept == [str(number)], "a node has the memory of its own client and of no other"
    assert not (folder / "runs/machines/seed0/clients").exists()
