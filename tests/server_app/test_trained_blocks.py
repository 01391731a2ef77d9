"""Runs that train the last blocks behind cached tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import load_run
from fedta_app.analysis.classification import evaluate_run
from fedta_app.config import RunConfig
from fedta_app.training.workspace import build_workspace
from tests.server_app.masked import MASKED, bits_of, final_weights, rows, run

BLOCKS = {"trained-blocks": 1, "lr": 0.01}
DENSE = {"mask-rule": "none", "strategy": "fedavg"}


@pytest.mark.parametrize("values", [DENSE, {"mask-scope": "union"}], ids=str)
def test_the_cache_changes_no_bit(tmp_path: Path, values: dict[str, Any]) -> None:
    found = []
    for number, cache in enumerate(["", str(tmp_path / "cache"), str(tmp_path / "cache")]):
        folder = tmp_path / str(number)
        summary = run(folder, **{**BLOCKS, **values, "cache-dir": cache, "augment": False})
        found.append(summary["final-weights-sha256"])
        assert summary["trained-blocks"] == 1
    assert len(set(found)) == 1
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 3  # train, validation, test


def test_masks_and_traffic_count_the_trained_blocks(tmp_path: Path) -> None:
    values = {**BLOCKS, "cache-dir": str(tmp_path / "cache")}
    summary = run(tmp_path / "masked", **values)
    run(tmp_path / "dense", **values, **DENSE)
    weights = final_weights(tmp_path / "dense")
    assert weights.shape == (33_600,)  # a block of vit_digits, and the norm behind it
    assert summary["mask"]["of"] == 33_600 and summary["mask"]["trained"] == 3_360
    up = [int(row["bytes_up"]) for row in rows(tmp_path / "dense", "train")]
    assert up == [3 * 33_600 * 4] * 2
    masked = final_weights(tmp_path / "masked")
    assert not torch.equal(bits_of(weights), bits_of(masked))
    mask = load_run(tmp_path / "masked/test/seed0").mask
    assert mask is not None and sum(int(part.sum()) for part in mask.values()) == 3_360
    assert {name.split(".")[0] for name in mask} == {"blocks", "norm"}


def test_the_model_that_is_kept_is_the_whole_one(tmp_path: Path) -> None:
    run(tmp_path, **BLOCKS, **DENSE, **{"cache-dir": "", "augment": False})
    found = load_run(tmp_path / "test/seed0")
    evaluated = evaluate_run(found, weights="last", split="test")
    assert evaluated.accuracy == found.final["test_accuracy"]
    start = build_workspace(RunConfig.from_mapping({**MASKED, **BLOCKS, **DENSE})).built.model
    kept = found.kept("last").tensors
    assert kept.keys() == start.state_dict().keys()
    for name, value in start.state_dict().items():
        trained = name.startswith(("blocks.3.", "norm.", "head."))
        assert torch.equal(kept[name], value) != trained, name
