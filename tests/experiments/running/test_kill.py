"""`kill -9` in the middle of a run, then the same command again."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.client_memory import forget_run
from engine.shared_memory import can_share
from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from fedta_app.algorithms import algorithms
from fedta_app.runs.finished_model import read_model
from tests.experiments.running.killing import descendants, kill_after, runs

ROOT = Path(__file__).resolve().parents[3]
# Some seconds are left after the last kill, also on a busy machine.
ROUNDS, ROUNDS_IN_PROCESS = 16, 40


def command(
    folder: Path,
    engine: str,
    *,
    name: str,
    seed: int = 0,
    strategy: str = "fedavg",
    rounds: int = ROUNDS,
) -> list[str]:
    settings = [
        f"name={name}", f"seed={seed}", f"num-server-rounds={rounds}", "eval-every=4",
        "eval-size=50", "checkpoint-every=2", "num-clients=40", f"strategy={strategy}",
    ]  # fmt: skip
    if strategy == "task-arithmetic":
        settings.append("server-scale=0.1")  # it diverges at 1
    sets = [part for setting in settings for part in ("--set", setting)]
    arguments = ["run", "demo/fedavg", "--engine", engine, "--results-dir", str(folder), *sets]
    return [sys.executable, "-m", "experiments", *arguments]


def finish(
    folder: Path, engine: str, *, name: str, seed: int = 0, **settings: Any
) -> dict[str, Any]:
    """Run `command` to its end, in this process where the engine allows that."""
    words = command(folder, engine, name=name, seed=seed, **settings)
    if engine == "in-process":
        forget_run()
        assert main(words[words.index("experiments") + 1 :]) == ExitStatus.FINISHED
    else:
        subprocess.run(words, cwd=ROOT, check=True, timeout=280, capture_output=True)
    path = folder / name / f"seed{seed}/summary.json"
    summary: dict[str, Any] = json.loads(path.read_text())
    assert summary["status"] == "finished"
    return summary


def rounds_done(folder: Path) -> int:
    try:
        with (folder / "killed/seed0/metrics.csv").open() as stream:
            return max((int(row["round"]) for row in csv.DictReader(stream)), default=-1)
    except FileNotFoundError:
        return -1


def kill_after_round(
    folder: Path, engine: str, server_round: int, strategy: str, rounds: int
) -> None:
    words = command(folder, engine, name="killed", strategy=strategy, rounds=rounds)
    kill_after(words, ROOT, lambda: rounds_done(folder), server_round)
    assert rounds_done(folder) < rounds


def check_kills(
    folder: Path, engine: str, strategy: str = "fedavg", kills: tuple[int, ...] = (0, 3, 7)
) -> str:
    rounds = ROUNDS_IN_PROCESS if engine == "in-process" else ROUNDS
    unbroken = finish(folder, "in-process", name="unbroken", strategy=strategy, rounds=rounds)
    for server_round in kills:
        kill_after_round(folder, engine, server_round, strategy, rounds)
    resumed = finish(folder, engine, name="killed", strategy=strategy, rounds=rounds)
    first, last = resumed["sessions"][-1]["rows"]
    assert 0 < first < last  # the last session had rounds left to do
    assert resumed["final-weights-sha256"] == unbroken["final-weights-sha256"]
    assert resumed["initial-weights-sha256"] == unbroken["initial-weights-sha256"]
    assert (resumed["bytes-up"], resumed["bytes-down"]) == (
        unbroken["bytes-up"],
        unbroken["bytes-down"],
    )
    check_models(folder)
    return str(unbroken["final-weights-sha256"])


def check_models(folder: Path) -> None:
    """Both runs kept the same best and the same last model, and say the same of them."""
    for weights in ("best", "last"):
        whole, killed = (
            read_model(folder / name / f"seed0/model/{weights}.safetensors").facts
            for name in ("unbroken", "killed")
        )
        for facts in (whole, killed):  # the engines may differ, and with them the configuration
            for key in ("run", "config", "config-sha256"):
                facts.pop(key)
        assert killed == whole


def test_a_kill_in_process_ends_at_the_unbroken_weights(tmp_path: Path) -> None:
    """SCAFFOLD: a lost round is played again from the memories that the checkpoint names."""
    check_kills(tmp_path, "in-process", "scaffold", (3,))
    check_memories(tmp_path)


def check_memories(folder: Path) -> None:
    """Clients keep what the checkpoints name, and nothing else, wherever the run was killed."""
    named: dict[str, set[str]] = {}
    for path in (folder / "killed/seed0/checkpoint").glob("step-*/state.json"):
        memories = json.loads(path.read_text())["state"]["parts"]["algorithm"]["memories"]
        for client, digest in memories.items():
            named.setdefault(client, set()).add(digest)
    kept = {
        path.name: {blob.name for blob in path.iterdir()}
        for path in (folder / "killed/seed0/clients").iterdir()
    }
    assert {client: blobs for client, blobs in kept.items() if blobs} == named
    assert named


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["in-process", "flower"])
def test_five_kills_with_client_memory_end_at_the_unbroken_weights(
    engine: str, tmp_path: Path
) -> None:
    check_kills(tmp_path, engine, "scaffold", (1, 3, 4, 6, 9))
    check_memories(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", sorted({*algorithms()} - {"fedavg", "scaffold"}))
def test_a_kill_on_flowers_engine_with_every_other_algorithm(strategy: str, tmp_path: Path) -> None:
    check_kills(tmp_path, "flower", strategy, (3,))


@pytest.mark.slow
def test_three_kills_on_flowers_engine_end_at_the_unbroken_weights(tmp_path: Path) -> None:
    expected = check_kills(tmp_path, "flower")
    summary = json.loads((tmp_path / "killed/seed0/summary.json").read_text())
    assert summary["transport"] == ("shared" if can_share() else "wire")
    assert not list(Path("/dev/shm").glob("*fedta*"))
    other = finish(tmp_path, "flower", name="other", seed=1)
    assert other["final-weights-sha256"] != expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_run_on_flowers_engine_ends_with_its_runner_and_goes_on(tmp_path: Path) -> None:
    """A scheduler kills the runner alone: nothing trains on, and the same command finishes it."""
    unbroken = finish(tmp_path, "in-process", name="unbroken")
    process = subprocess.Popen(
        command(tmp_path, "flower", name="killed"), cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 500  # Flower and Ray start slowly on a busy machine
        while rounds_done(tmp_path) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        working = descendants(process.pid)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while left := [pid for pid in working if runs(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert rounds_done(tmp_path) < ROUNDS
    resumed = finish(tmp_path, "flower", name="killed")
    assert resumed["final-weights-sha256"] == unbroken["final-weights-sha256"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_an_actor_that_is_killed_costs_a_round_and_no_bit(tmp_path: Path) -> None:
    """As by Linux where memory is short: Flower would go on to use the dead process."""
    unbroken = finish(tmp_path, "in-process", name="unbroken")
    process = subprocess.Popen(
        command(tmp_path, "flower", name="killed"), cwd=ROOT, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 500
        while rounds_done(tmp_path) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        actor = next(
            pid for pid in descendants(process.pid) if title(pid).startswith("ray::Client")
        )
        os.kill(actor, signal.SIGKILL)
        output, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == ExitStatus.FINISHED, output
    assert output.count("it is started again from the last checkpoint") == 1
    summary = json.loads((tmp_path / "killed/seed0/summary.json").read_text())
    assert summary["final-weights-sha256"] == unbroken["final-weights-sha256"]
    assert len(summary["sessions"]) == 2 and not summary["final"]["clients_failed"]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
