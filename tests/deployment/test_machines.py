"""A server and three nodes with processes of their own, over TLS; one is killed and comes back."""

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.endurance.machines import PORT, Machines, machines, rounds
from experiments import load_run

KEYS = {
    "name": "machines", "dataset": "folder", "partition": "nodes", "image-size": 8,
    "weights": "random", "num-clients": 3, "fraction-train": 1.0, "num-server-rounds": 40,
    "local-steps": 2, "eval-every": 20, "eval-size": 100, "head": "ridge", "threads": 1,
    "mask-rule": "least-sensitive", "calibration-rounds": 1, "calibration-examples": 20,
    "strategy": "scaffold",
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(
        sys.platform != "linux" or not (shutil.which("openssl") and shutil.which("ssh-keygen")),
        reason="the scripts need Linux, openssl and ssh-keygen",
    ),
]


def test_a_masked_run_over_tls_goes_on_when_a_node_is_killed_and_comes_back(
    tmp_path: Path,
) -> None:
    with machines(tmp_path) as there:
        watch(there, tmp_path)


def watch(there: Machines, folder: Path) -> None:
    there.script("certificates.sh", folder / "others", "127.0.0.1", 3)
    there.serve()
    there.script("register.sh", folder / "keys", PORT)
    for number in range(2):
        there.node(number)
    # A key that nobody registered, and a certificate of another authority.
    shutil.copy(folder / "keys/ca.crt", folder / "others/known.crt")
    there.node(2, "others")
    run = there.run(KEYS)
    there.wait_for("run", "waiting for nodes: 2 of 3 are there")
    there.wait_for("node2", "certificate")
    there.kill("node2")
    (folder / "others/known.crt").replace(folder / "others/ca.crt")
    there.node(2, "others")
    there.wait_for("node2", "the node ended with status")
    there.kill("node2")
    there.node(2)
    there.wait_until(lambda: bool(rounds(run)), "run")
    there.kill("node1")
    there.node(1)
    there.wait_for("run", "finished:")
    table = load_run(run).metrics
    trained = table[table["phase"] == "train"]
    assert trained["clients_ok"].iloc[0] == 3
    assert trained["clients_ok"].min() == 2 and trained["clients_ok"].iloc[-1] == 3
    assert trained["clients_rejected"].sum() == 0
    for number in range(3):
        kept = [path.name for path in (folder / f"runs{number}/machines/seed0/clients").iterdir()]
        assert kept == [str(number)], "a node has the memory of its own client and of no other"
    assert not (run / "clients").exists()
