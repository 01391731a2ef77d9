import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.masks import round_density
from fedta_app.runs.session import RunSession
from fedta_app.training.workspace import build_workspace, shared_workspace
from tests.zero_head import fit_zeros

BASE = {
    "name": "test",
    "engine": "centralized",
    "num-server-rounds": 3,
    "local-steps": 3,
    "lr": 0.02,
    "weight-decay": 0.01,
    "eval-every": 3,
    "eval-size": 100,
    "threads": 1,
}
SPARSE = {
    "head": "ridge", "mask-rule": "least-sensitive", "calibration-rounds": 2,
    "calibration-examples": 64,
}  # fmt: skip


def run(folder: Path, **values: Any) -> dict[str, Any]:
    shared_workspace.cache_clear()  # as in a process of its own
    run_centralized(RunConfig.from_mapping({**BASE, "results-dir": str(folder), **values}))
    summary: dict[str, Any] = json.loads((folder / "test/seed0/summary.json").read_text())
    return summary


def test_it_learns_and_continues_its_momentum(tmp_path: Path) -> None:
    summary = run(tmp_path, **{"num-server-rounds": 8, "local-steps": 0, "eval-every": 1})
    assert summary["status"] == "finished"
    assert summary["final"]["test_accuracy"] > 0.9
    assert summary["best-by-validation"]["val_accuracy"] >= summary["final"]["val_accuracy"]


def test_a_schedule_that_does_nothing_is_said_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tmp_path, **{"lr-schedule": "step", "lr-step-rounds": 3})
    (warning,) = summary["warnings"]
    assert "lr-schedule = 'step' lowers lr in no round" in warning
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run directory: ") and lines[1] == f"warning: {warning}"


def test_pretrained_weights_at_chance_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedta_app.training.head_fit.fit_head", fit_zeros)
    with pytest.raises(RunError, match=r"round 0 is at chance .* although weights = 'pretrained'"):
        run(tmp_path, head="ridge")


@pytest.mark.parametrize(
    "values",
    [
        SPARSE,
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({}, {"optimizer": "lamb"})),
        {"optimizer": "lars"},
    ],
)
def test_a_stop_after_every_round_changes_no_bit(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(tmp_path / "unbroken", **values)
    add = RunSession.add

    def add_and_stop(session: RunSession, *arguments: Any) -> None:
        add(session, *arguments)
        (session.directory.path / "stop").touch()

    monkeypatch.setattr(RunSession, "add", add_and_stop)
    for _ in range(10):
        broken = run(tmp_path / "broken", **values)
        if broken["status"] == "finished":
            break
    assert len(broken["sessions"]) > 3
    for key in ("final-weights-sha256", "initial-weights-sha256"):
        assert broken[key] == unbroken[key]
    assert broken.get("mask") == unbroken.get("mask")


def test_sparse_fine_tuning_moves_its_share_and_nothing_else(tmp_path: Path) -> None:
    summary = run(tmp_path, **SPARSE)
    start = build_workspace(RunConfig.from_mapping({**BASE, **SPARSE})).weights.vector
    assert summary["mask"]["trained"] == round_density(0.9, len(start))
    steps = sorted((tmp_path / "test/seed0/checkpoint").glob("step-*"))
    end = load_file(steps[-1] / "weights.safetensors")["parts/baseline/weights"]
    moved = int((start.view(torch.int32) != end.view(torch.int32)).sum())
    assert 0.9 * summary["mask"]["trained"] < moved <= summary["mask"]["trained"]
