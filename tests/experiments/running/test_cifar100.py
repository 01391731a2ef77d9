"""Real CIFAR-100, where it is: every rule and scope on Flower's engine, killed on the way."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedta_app.config import RunConfig
from fedta_app.masks import MASK_RULES
from fedta_app.runs.blobs import BlobStore
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors import FlatMask
from tests.experiments.running.killing import kill_tree

ROOT = Path(__file__).resolve().parents[3]
QUICK = {
    "num-clients": 20,
    "num-server-rounds": 4,
    "local-steps": 1,
    "batch-size": 4,
    "eval-size": 20,
    "eval-every": 4,
    "checkpoint-every": 1,
    "head": "probe",
    "probe-rounds": 1,
    "calibration-rounds": 2,
    "calibration-examples": 4,
    "strategy": "masked-fedavg",
}
CASES = [(rule, "global") for rule in MASK_RULES if rule != "contrast"] + [
    ("least-sensitive", scope) for scope in ("client", "vote", "union", "intersection", "server")
]


def command(
    folder: Path, data: Path, engine: str, preset: str, values: dict[str, Any]
) -> list[str]:
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    places = ["--data-dir", str(data), "--results-dir", str(folder), "--engine", engine]
    return [sys.executable, "-m", "experiments", "run", preset, *places, *sets]


def finish(*arguments: Any) -> dict[str, Any]:
    subprocess.run(command(*arguments), cwd=ROOT, check=True, timeout=280, capture_output=True)
    summary: dict[str, Any] = json.loads((run_of(*arguments) / "summary.json").read_text())
    assert summary["status"] == "finished"
    return summary


def run_of(folder: Path, data: Path, engine: str, preset: str, values: dict[str, Any]) -> Path:
    return folder / preset / "seed0"


def kill_after(row: int, *arguments: Any) -> None:
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = run_of(*arguments) / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= row:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    kill_tree(process)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "scope"), CASES)
def test_rules_and_scopes_survive_a_kill_on_flowers_engine(
    tmp_path: Path, cifar100_dir: Path, rule: str, scope: str
) -> None:
    values = {**QUICK, "mask-rule": rule, "mask-scope": scope}
    killed = (tmp_path / "killed", cifar100_dir, "flower", "small/fedavg-nc5", values)
    kill_after(3, *killed)
    summary = finish(*killed)
    unbroken = (tmp_path / "unbroken", cifar100_dir, "in-process", "small/fedavg-nc5", values)
    assert summary["final-weights-sha256"] == finish(*unbroken)["final-weights-sha256"]
    first, last = summary["sessions"][-1]["rows"]
    assert 0 < first < last  # the second session had rounds left to do
    config = RunConfig.from_mapping({
        "dataset": "cifar100", "data-dir": str(cifar100_dir), "model": "vit_cifar",
        "weights": "random", "head": "probe", "num-clients": 20,
    })  # fmt: skip
    before = build_workspace(config).weights.vector
    directory = run_of(*killed)
    bits = BlobStore(directory / "blobs").get(summary["mask"]["sha256"])
    mask = FlatMask.from_bits(bits, len(before), torch.device("cpu")).mask
    (*_, last) = sorted((directory / "checkpoint").glob("step-*"))
    after = load_file(last / "weights.safetensors")["parts/server/weights"]
    assert torch.equal(before.view(torch.int32)[~mask], after.view(torch.int32)[~mask])
    assert not torch.equal(before[mask], after[mask])


@pytest.mark.slow
def test_one_class_per_client_starts_where_iid_does(tmp_path: Path, cifar100_dir: Path) -> None:
    starts = []
    for number, partition in enumerate(("iid", "classes")):
        values = {
            "model": "cnn", "head": "ridge", "partition": partition, "num-classes-per-client": 1,
            "num-server-rounds": 1, "local-steps": 1, "eval-size": 2000,
        }  # fmt: skip
        arguments = (tmp_path / str(number), cifar100_dir, "in-process", "small/fedavg-iid", values)
        finish(*arguments)
        with (run_of(*arguments) / "metrics.csv").open() as stream:
            (start,) = [row for row in csv.DictReader(stream) if row["phase"] == "start"]
        starts.append((start["val_accuracy"], start["test_accuracy"]))
    assert starts[0] == starts[1]
    assert float(starts[0][1]) > 0.1
