"""One run on Flower's simulation engine: the same bits, an honest exit status, nothing left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.running.flower import engine as flower_engine
from experiments.running.flower import is_chatter, run_on_flower
from fedta_app.config import RunConfig

ROOT = Path(__file__).resolve().parents[4]


def arguments(folder: Path, engine: str, *settings: str) -> list[str]:
    quick = [
        "num-server-rounds=3", "eval-size=50", "num-clients=10", "fraction-train=0.4", *settings
    ]  # fmt: skip
    sets = [part for setting in quick for part in ("--set", setting)]
    return ["run", "demo/fedavg", "--engine", engine, "--results-dir", str(folder), *sets]


def run(folder: Path, engine: str, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments(folder, engine, *settings)],
        cwd=folder, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


def test_flowers_engine_gives_the_bits_of_the_in_process_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shas, codes = {}, {}
    for engine in ("flower", "in-process"):
        folder = tmp_path / engine
        folder.mkdir()
        if engine == "flower":
            result = run(folder, engine)
            assert result.returncode == 0, result.stdout + result.stderr
            output = result.stdout
        else:
            assert main(arguments(folder, engine)) == 0
            output = capsys.readouterr().out
        directory = folder / "demo/fedavg/seed0"
        # A warning where the code is not committed, as while it is worked on.
        lines = [line for line in output.splitlines() if not line.startswith("warning: ")]
        assert lines[0] == lines[-1] == f"run directory: {directory}"
        assert lines[-2].startswith("finished: train round 3")
        summary = json.loads((directory / "summary.json").read_text())
        shas[engine] = summary["final-weights-sha256"]
        codes[engine] = summary["code"], summary["sessions"][0]["command"].split()[3:4]
    assert shas["flower"] == shas["in-process"]
    assert codes["flower"] == codes["in-process"]  # the commit too, of which the copy knows nothing


@pytest.mark.slow
def test_a_run_that_stops_early_on_flowers_engine_says_so_by_its_status(tmp_path: Path) -> None:
    stopped = run(tmp_path, "flower", "max-minutes=1e-9")
    assert stopped.returncode == 3
    assert "max-minutes = 1e-09 is used up" in stopped.stdout


@pytest.mark.parametrize(
    ("clients", "per_node", "nodes", "told"),
    [(100, 0, 100, 1), (200, 0, 200, 1), (201, 0, 101, 2), (10_000, 0, 200, 50), (100, 7, 15, 7)],
)
def test_a_large_federation_has_nodes_that_stand_for_several_clients(
    monkeypatch: pytest.MonkeyPatch, clients: int, per_node: int, nodes: int, told: int
) -> None:
    calls = []
    monkeypatch.setattr(flower_engine, "run_app", lambda *arguments: calls.append(arguments))
    config = RunConfig(num_clients=clients, clients_per_node=per_node)
    run_on_flower(config, client_cpus=1, client_gpus=0.0)
    (_, run_config, federation) = calls[0]
    assert federation.startswith(f"num-supernodes={nodes} ")
    assert f"clients-per-node = {told}\n" in run_config


@pytest.mark.parametrize(
    ("line", "chatter"),
    [
        ("\x1b[36m(ClientAppActor pid=19)\x1b[0m \x1b[93mWARNING \x1b[0m:   Manually ending", True),
        ("(ClientAppActor pid=19) INFO :      Starting", True),
        ("\x1b[92mINFO \x1b[0m:      Starting Flower Simulation", True),
        ("Successfully installed fedta to /tmp/x", True),
        ("\n", True),
        ("\x1b[91mERROR \x1b[0m:     the client failed", False),
        ("\x1b[36m(ClientAppActor pid=19)\x1b[0m \x1b[91mERROR \x1b[0m: out of memory", False),
        ("(ClientAppActor pid=19) warning: this GPU only emulates bf16", False),
        ("train round 3/3  loss 1.2", False),
    ],
)
def test_flowers_chatter_is_hidden_and_nothing_else(line: str, chatter: bool) -> None:
    assert is_chatter(line) == chatter


def test_what_ray_says_is_not_among_the_lines_of_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    disk = "\x1b[33m(raylet)\x1b[0m [2026-11-26 13:29:16,894 E 14502] /tmp is over 95% full"
    dead = "(raylet, ip=10.0.0.1) A worker died"
    client = "\x1b[36m(ClientAppActor pid=19)\x1b[0m warning: this GPU only emulates bf16"
    chatter = "\x1b[92mINFO \x1b[0m:      Starting Flower Simulation"
    run_lines = ["run directory: /r", "train round 1/1  loss 1.2", "run directory: /r"]
    said = [disk, chatter, run_lines[0], dead, client, *run_lines[1:], "after the run"]
    program = f"print({chr(10).join(said)!r})"
    flower_engine._stream([sys.executable, "-c", program], {})
    output = capfd.readouterr()
    assert output.out.splitlines() == run_lines
    assert [line for line in output.err.splitlines() if "(" in line] == [disk, dead, client]
