"""What stops a run with a head and a mask, and what does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.training import client as local
from tests.server_app.masked import (
    MASKED,
    rows,
    run,
)
from tests.zero_head import fit_zeros


def test_pretrained_weights_at_chance_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server_app.ridge.fit_head", fit_zeros)
    with pytest.raises(RunError, match=r"round 0 is at chance .* although weights = 'pretrained'"):
        run(tmp_path, **{"mask-rule": "random"})


@pytest.mark.parametrize("scope", ["global", "server", "client", "vote"])
def test_a_mask_without_evidence_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """Under a head of zeros no weight matters, so that position alone would decide."""
    monkeypatch.setattr("server_app.ridge.fit_head", fit_zeros)
    with pytest.raises((ValueError, RunError), match="are zero for all 135488 weights"):
        run(tmp_path, **{"mask-scope": scope})
    summary = json.loads((tmp_path / "test/seed0/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "mask" not in summary


@pytest.mark.parametrize("scope", ["global", "client", "union"])
def test_a_mask_from_no_client_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    def broken(*arguments: Any, **__: Any) -> None:
        raise ArithmeticError("too large")

    monkeypatch.setattr("client_app.app.scores", broken)
    monkeypatch.setattr("client_app.app.own_mask", broken)
    with pytest.raises(RunError, match=r"(no client|every client).*ArithmeticError: too large"):
        run(tmp_path, **{"mask-scope": scope, "calibration-fraction": 0.5})


def test_a_head_without_all_clients_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client_app.app as client

    def broken(*arguments: Any, **__: Any) -> None:
        raise ArithmeticError("too large")

    monkeypatch.setattr(client, "head_statistics", broken)
    said = r"sums of every client, and 3 of 3 are missing: clients 0, 1 and 2 failed \(Arith"
    with pytest.raises(RunError, match=said):
        run(tmp_path)


def test_scores_without_all_clients_are_refused_where_all_were_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client_app.app as client

    real = client.scores

    def sometimes(workspace: Any, batches: Any, *values: Any, **named: Any) -> torch.Tensor:
        if 3 in batches.ids:  # one client has this image
            raise ArithmeticError("too large")
        return real(workspace, batches, *values, **named)

    monkeypatch.setattr(client, "scores", sometimes)
    everything = {"calibration-examples": 0, "calibration-rounds": 1, "num-server-rounds": 1}
    with pytest.raises(RunError, match=r"scores of every client .* 1 of 5 are .*: too large"):
        run(tmp_path, **everything)
    run(tmp_path / "some", **everything, **{"calibration-fraction": 0.95})
    (calibrate,) = rows(tmp_path / "some", "calibrate")
    assert (calibrate["clients_ok"], calibrate["clients_failed"]) == ("4", "1")


@pytest.mark.parametrize(
    "values",
    [{"sparsity": 0.999999}, {"score-threshold": 1e-30, "calibration-rounds": 1}],
)
def test_a_mask_without_a_weight_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="the mask trains no weight at all: s"):
        run(tmp_path, **values)


def test_a_run_that_diverges_fails_and_leaves_valid_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="training diverged in round"):
        run(tmp_path, **{"lr": 1e30, "num-server-rounds": 4})
    text = (tmp_path / "test/seed0/summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["status"] == "failed"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"head": "random"}, "mask-rule = 'least-sensitive' is not allowed with head = 'random'"),
        ({"score-threshold": 0.5}, "score-threshold = 0.5 is not allowed here"),
        (
            {"mask-rule": "agreement", "mask-scope": "client"},
            "mask-rule = 'agreement' is not allowed with mask-scope = 'client'",
        ),
        ({"sparsity": 1.0}, "sparsity = 1.0 is not allowed"),
        ({"mask-rule": "least"}, "mask-rule is one of none, least-sensitive"),
        ({"engine": "centralized", "head": "probe"}, "head = 'probe' is not allowed with engine"),
        (
            {"engine": "centralized", "mask-rule": "agreement"},
            "mask-rule = 'agreement' is not allowed with mask-scope = 'global' and engine",
        ),
        ({"mask-scope": "vote", "sparsity-scope": "layer"}, "mask-scope = 'vote' is not allowed"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig.from_mapping({**MASKED, **values})
    assert sentence in str(refusal.value)


def test_a_failing_client_is_survived_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = local.train_steps

    def sometimes(*arguments: Any, key: tuple[int, ...], **values: Any) -> float:
        if key[1] % 2:
            raise ArithmeticError
        return train(*arguments, key=key, **values)

    monkeypatch.setattr(local, "train_steps", sometimes)
    run(tmp_path)
    assert any(int(row["clients_failed"]) for row in rows(tmp_path, "train"))
