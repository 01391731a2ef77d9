"""A masked run on digits that takes seconds, and what it leaves."""

import csv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedta_app.config import RunConfig
from fedta_app.runs.blobs import BlobStore
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors import FlatMask
from tests.runs import summary_of

CLIENTS = 5
MASKED = {
    "name": "test",
    "partition": "classes",
    "num-clients": CLIENTS,
    "num-classes-per-client": 2,
    "fraction-train": 0.6,
    "num-server-rounds": 2,
    "local-steps": 2,
    "batch-size": 4,
    "lr": 0.05,
    "weight-decay": 0.01,
    "eval-every": 2,
    "eval-size": 100,
    "threads": 1,
    "head": "ridge",
    "mask-rule": "least-sensitive",
    "calibration-rounds": 2,
    "calibration-examples": 8,
    "strategy": "masked-fedavg",
    "engine": "in-process",
}
BACKBONE = 135_488  # weights of vit_digits without its head


def run(folder: Path, **values: Any) -> dict[str, Any]:
    summary = summary_of(folder, {**MASKED, **values})
    assert summary["status"] == "finished"
    return summary


def rows(folder: Path, phase: str) -> list[dict[str, str]]:
    with (folder / "test/seed0/metrics.csv").open() as stream:
        return [row for row in csv.DictReader(stream) if row["phase"] == phase]


def initial_weights(**values: Any) -> torch.Tensor:
    return build_workspace(RunConfig.from_mapping({**MASKED, **values})).weights.vector


def final_weights(folder: Path) -> torch.Tensor:
    steps = sorted((folder / "test/seed0/checkpoint").glob("step-*"))
    return load_file(steps[-1] / "weights.safetensors")["parts/server/weights"]


def stored_mask(folder: Path, summary: dict[str, Any]) -> torch.Tensor:
    bits = BlobStore(folder / "test/seed0/blobs").get(summary["mask"]["sha256"])
    return FlatMask.from_bits(bits, BACKBONE, torch.device("cpu")).mask


def bits_of(vector: torch.Tensor) -> torch.Tensor:
    return vector.view(torch.int32)
