"""Runs with secure aggregation: the results of runs without it, up to rounding, from sums alone."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import client_app.app as client
import strategies.secure
from client_app.secure import secured_update
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.finished.reading import load_run
from fedta_app.runs.directory import run_path
from fedta_app.runs.session import RunSession
from fedta_app.secure import SecureSum
from fedta_app.vectors import FlatMask
from server_app.ridge import groups_of
from tests.runs import summary_of
from tests.server_app.failing import fail_for

RUN: dict[str, Any] = {
    "name": "test", "partition": "iid", "size-spread": 0.5, "num-clients": 6,
    "fraction-train": 0.67, "num-server-rounds": 2, "local-steps": 2, "batch-size": 4, "lr": 0.05,
    "eval-size": 50, "eval-every": 2, "threads": 1, "engine": "in-process",
}  # fmt: skip
MASKED = {
    "head": "ridge", "mask-rule": "least-sensitive", "calibration-rounds": 1,
    "calibration-examples": 4,
}  # fmt: skip
SECURE = {"secure-aggregation": True}


def run(folder: Path, **values: Any) -> dict[str, Any]:
    return summary_of(folder, {**RUN, **values})


def final_weights(folder: Path, **values: Any) -> torch.Tensor:
    config = RunConfig.from_mapping({**RUN, "results-dir": str(folder), **values})
    state = load_run(run_path(config)).model().state_dict()
    return torch.cat([tensor.flatten() for _, tensor in sorted(state.items())])


@pytest.mark.parametrize(
    "values", [{}, {"strategy": "fedadam"}, {"strategy": "task-arithmetic"}], ids=str
)
def test_the_weights_are_those_without_it_up_to_rounding(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    plain, secure = run(tmp_path / "plain", **values), run(tmp_path / "secure", **values, **SECURE)
    expected, found = (
        final_weights(tmp_path / name, **values, **more)
        for name, more in (("plain", {}), ("secure", SECURE))
    )
    # Adam divides by the root of small squares, which makes the rounding of small updates larger.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if not values else 1e-4)
    shares = 2 * 4 * 4 * 66  # in two rounds, of four clients each, of four clients each
    assert secure["bytes-up"] == plain["bytes-up"] + shares
    with (tmp_path / "secure/test/seed0/metrics.csv").open() as stream:
        trained = [row for row in csv.DictReader(stream) if row["phase"] == "train"]
    assert [row["clients_ok"] for row in trained] == ["4", "4"]  # the shares count none twice
    assert any("it protects nobody" in warning for warning in secure["warnings"])
    assert not any("it protects nobody" in warning for warning in plain["warnings"])


def test_head_and_mask_come_from_sums_too(tmp_path: Path) -> None:
    """The head up to rounding, the mask but for scores that are nearly equal."""
    plain = run(tmp_path / "plain", **MASKED)
    secure = run(tmp_path / "secure", **MASKED, **SECURE)
    assert secure["head"]["images"] == plain["head"]["images"]
    assert secure["head"]["ridge"] == pytest.approx(plain["head"]["ridge"])
    expected, found = (
        final_weights(tmp_path / name, **MASKED, **more)
        for name, more in (("plain", {}), ("secure", SECURE))
    )
    moved = (found - expected).abs() > 1e-5
    assert int(moved.sum()) <= 2e-3 * len(moved)


def test_scores_fit_whatever_a_soft_mask_makes_of_them(tmp_path: Path) -> None:
    """All rounds of the calibration, in which the largest score changes a thousandfold."""
    values = {**MASKED, "calibration-rounds": 4, "calibration-examples": 0, "num-server-rounds": 1}
    plain = run(tmp_path / "plain", **values)
    secure = run(tmp_path / "secure", **values, **SECURE)
    assert secure["mask"]["trained"] == plain["mask"]["trained"]
    found, expected = (
        trained_by(tmp_path / name, summary)
        for name, summary in (("secure", secure), ("plain", plain))
    )
    assert int((found != expected).sum()) <= 2e-3 * int(expected.sum())


def trained_by(folder: Path, summary: dict[str, Any]) -> torch.Tensor:
    bits = (folder / "test/seed0/blobs" / summary["mask"]["sha256"]).read_bytes()
    return FlatMask.from_bits(bits, summary["mask"]["of"], torch.device("cpu")).mask


def test_an_update_that_is_not_finite_is_no_update_of_the_range() -> None:
    config = RunConfig.from_mapping({**RUN, **SECURE})
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match="the update has numbers that are not finite"):
            secured_update(config, {}, torch.tensor([0.0, value]), 3)


def test_the_server_gets_integers_that_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    add = strategies.secure.MaskedTotal.add

    def see(self: Any, partition_id: int, masked: torch.Tensor) -> None:
        seen.append(masked.clone())
        add(self, partition_id, masked)

    monkeypatch.setattr(strategies.secure.MaskedTotal, "add", see)
    run(tmp_path, **MASKED, **SECURE)
    kinds = {vector.dtype for vector in seen}
    assert kinds == {torch.int32, torch.int64}
    for vector in seen:  # uniform: half of the highest bits are set
        negative = float((vector < 0).double().mean())
        assert negative == pytest.approx(0.5, abs=4 * 0.5 / len(vector) ** 0.5)


def test_a_client_that_drops_out_is_left_out_of_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = {"fraction-train": 1.0, "num-server-rounds": 1}
    fail_for(monkeypatch, lambda key: key[1] == 2)
    run(tmp_path / "plain", **everybody)
    run(tmp_path / "secure", **everybody, **SECURE)
    expected, found = (
        final_weights(tmp_path / name, **everybody, **more)
        for name, more in (("plain", {}), ("secure", SECURE))
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_client_that_keeps_its_shares_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everybody = {"head": "ridge", "fraction-train": 1.0, "num-server-rounds": 1}
    run(tmp_path / "all", **everybody, **SECURE)
    tell = client.shares

    def sometimes(config: RunConfig, settings: Any) -> torch.Tensor:
        if settings["partition-id"] == 4:
            raise ArithmeticError("gone")
        return tell(config, settings)

    monkeypatch.setattr(client, "shares", sometimes)
    summary = run(tmp_path / "some", **everybody, **SECURE)
    whole = json.loads((tmp_path / "all/test/seed0/summary.json").read_text())
    assert summary["final-weights-sha256"] == whole["final-weights-sha256"]
    assert "missing-clients" not in summary  # its vectors are in the sums


@pytest.mark.parametrize("phase", ["train", "head"])
def test_with_too_few_answers_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    values = {"fraction-train": 1.0, "num-server-rounds": 1, **SECURE}
    if phase == "train":
        fail_for(monkeypatch, lambda key: key[1] in (1, 2, 3))
        sentence = "3 of at least 5 clients finished round 1"
    else:
        monkeypatch.setattr(client, "head_statistics", lambda *_: 1 / 0)
        values = {**values, **MASKED}
        sentence = "secure aggregation cannot go on: 0 of 6 clients.*ZeroDivisionError"
    with pytest.raises(RunError, match=sentence):
        run(tmp_path, **values)


@given(st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_every_client_is_in_one_group_and_too_few_are_not_alone(
    clients: int, size: int, secure: bool
) -> None:
    groups = groups_of(range(clients), size, secure=secure)
    assert [client for group in groups for client in group] == list(range(clients))
    fewest = 3 if secure else 2
    for group in groups:
        assert min(clients, size, fewest) <= len(group) <= size + fewest - 1


def test_a_server_that_asks_for_a_bare_vector_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SecureSum, "to_config", lambda self: {})
    with pytest.raises(RunError, match="the server asks for a bare vector"):
        run(tmp_path, **SECURE)


def test_a_run_that_stops_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two sums for the head, of three clients each: it stops between them.
    values = {**MASKED, **SECURE, "checkpoint-every": 1, "fraction-train": 0.5}
    whole = run(tmp_path / "whole", **values)
    for rows in (1, 3, 5):
        with monkeypatch.context() as patched:
            patched.setattr(
                RunSession, "stop_reason",
                lambda self, rows=rows: "enough" if len(self.rows) == rows else "",
            )  # fmt: skip
            assert run(tmp_path / "parts", **values)["status"] == "stopped"
    resumed = run(tmp_path / "parts", **values)
    assert resumed["final-weights-sha256"] == whole["final-weights-sha256"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strategy": "krum"}, "strategy = 'krum': its server needs more than the mean"),
        ({"strategy": "scaffold"}, "strategy = 'scaffold': its server needs"),
        ({"strategy": "feddyn"}, "strategy = 'feddyn': its server keeps the mean of what"),
        ({"head": "probe"}, "head = 'probe': only head = 'ridge'"),
        ({**MASKED, "mask-rule": "agreement"}, "mask-rule = 'agreement': it needs more"),
        ({**MASKED, "mask-scope": "client"}, "mask-scope = 'client': it takes masks"),
        ({"update-bound": 1.0}, "update-bound = 1.0: the server cannot measure"),
        ({"task-figures": True}, "task-figures = true: they show single updates"),
        ({"fraction-train": 0.3}, "a round asks 2 of them, and of two each can"),
        (
            {**MASKED, "calibration-fraction": 0.3},
            "calibration-fraction = 0.3 .* a round of the mask asks 2 of them, and of two each can",
        ),
    ],
)
def test_what_needs_single_clients_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.from_mapping({**RUN, **SECURE, **values})
    RunConfig.from_mapping({**RUN, **SECURE, **values, "secure-aggregation": False})
