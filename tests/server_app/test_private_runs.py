"""Runs with noise: what they record and say, frozen weights, and resume."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import strategies.private
from fedta_app.config import RunConfig
from fedta_app.runs.session import RunSession
from server_app.privacy import privacy_warnings, uncovered
from tests.server_app.masked import (
    MASKED,
    bits_of,
    final_weights,
    initial_weights,
    rows,
    run,
    stored_mask,
)

DP: dict[str, Any] = {
    "num-clients": 10, "fraction-train": 0.1, "num-server-rounds": 5, "eval-every": 5,
    "mask-rule": "random", "strategy": "fedavg", "measure-test": "never",
    "dp-noise": 0.5, "update-bound": 0.05, "update-bound-kind": "fixed",
}  # fmt: skip


@pytest.fixture(autouse=True)
def epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package of the accountant is not installed, the number of rounds stands for it."""
    if importlib.util.find_spec("dp_accounting") is None:
        monkeypatch.setattr(strategies.private, "epsilon", lambda rounds, **_: float(rounds))


def test_a_run_says_what_its_epsilon_is_of_and_ends_in_the_same_bits_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tmp_path / "unbroken", **DP)
    said = capsys.readouterr().out
    assert "at delta = 1e-05 after 5 rounds" in said
    assert "warning: epsilon covers the updates of training; it does not cover the sums of" in said
    train = rows(tmp_path / "unbroken", "train")
    spent = [float(row["epsilon"]) for row in train]
    assert spent == sorted(set(spent)) and len(spent) == 5
    assert all(row["epsilon"] == "" for row in rows(tmp_path / "unbroken", "head"))
    empty = [row["train_loss"] == "" for row in train]
    assert any(empty) and not all(empty), "Poisson sampling chose nobody in some round"
    privacy = summary["privacy"]
    assert privacy["epsilon"] == spent[-1] and privacy["rounds"] == 5
    assert "the sums of the ridge head" in privacy["not-covered"]

    add = RunSession.add

    def add_and_die(self: RunSession, row: Any, state: Any) -> None:
        add(self, row, state)
        if (row.phase, row.round) == ("train", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunSession, "add", add_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed", **DP)
    resumed = run(tmp_path / "resumed", **DP)
    assert resumed["final-weights-sha256"] == summary["final-weights-sha256"]
    again = rows(tmp_path / "resumed", "train")
    assert [float(row["epsilon"]) for row in again] == spent

    mask = stored_mask(tmp_path / "unbroken", summary)
    before, after = initial_weights(), final_weights(tmp_path / "unbroken")
    assert int((bits_of(before) == bits_of(after))[~mask].sum()) == int((~mask).sum())
    assert bool((before != after)[mask].all()), "the noise is on every weight that travels"


def test_in_a_deployment_nobody_can_draw_the_noise_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("server_app.state.is_deployment", lambda grid: True)
    ends = {run(tmp_path / part, **DP)["final-weights-sha256"] for part in ("one", "two")}
    assert len(ends) == 2 and "drawn from the seed" not in capsys.readouterr().out


def test_without_noise_its_keys_are_idle_and_nothing_is_said(tmp_path: Path) -> None:
    values = {**DP, "dp-noise": 0.0, "num-server-rounds": 1}
    plain = run(tmp_path / "plain", **values)
    idle = run(tmp_path / "idle", **values, **{"dp-sampling": "fixed", "dp-delta": 0.01})
    assert idle["final-weights-sha256"] == plain["final-weights-sha256"]
    assert "privacy" not in plain and not plain["warnings"]
    assert rows(tmp_path / "plain", "train")[0]["epsilon"] == ""


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "the sums of the ridge head"),
        ({"head": "probe"}, "the training of the probe head"),
        ({"mask-rule": "least-sensitive"}, "the calibration of the mask"),
        ({"shared-fraction": 0.1}, "the images that clients share"),
        ({"strategy": "ditto"}, "the accuracy of clients' own models"),
        ({"strategy": "per-fedavg"}, "the accuracy of clients' own models"),
    ],
)
def test_what_is_not_covered_is_named(values: dict[str, Any], named: str) -> None:
    plain = {"head": "random", "mask-rule": "none"}
    config = RunConfig.from_mapping({**MASKED, **DP, **values})
    first, second = privacy_warnings(config, deployed=False)
    assert privacy_warnings(config, deployed=True) == [first]
    assert named in uncovered(config) and named in first and "seed" in second
    without = RunConfig.from_mapping({**MASKED, **DP, **plain})
    assert named not in uncovered(without) and len(uncovered(without)) == 3
