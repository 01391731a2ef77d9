"""Phases that need every client: which ones are missing and why, and going on without them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.client_memory import bytes_vector
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.checkpoint import load_checkpoint
from fedta_app.runs.session import RunSession
from fedta_app.training.head_fit import (
    empty_statistics,
    fit_head,
    head_images,
    head_statistics,
    pooled_head,
)
from fedta_app.training.scoring import client_batches, scores
from fedta_app.training.workspace import Workspace, build_workspace
from server_app.missing import settle_missing
from strategies.exchange import RoundCosts
from strategies.reply_checks import ReplyError
from tests.runs import summary_of
from tests.server_app.masked import BACKBONE, MASKED, rows, run, stored_mask
from tests.server_app.test_rejected_replies import answer_badly

VALUES: dict[str, Any] = {
    "num-clients": 10, "fraction-train": 0.5, "calibration-rounds": 1, "num-server-rounds": 1,
    "missing-clients": "go-on",
}  # fmt: skip
BROKE = {"1": "failed (it broke)"}
OTHERS = [0, 2, 3, 4, 5, 6, 7, 8, 9]


def state(missing_clients: str = "refuse", shared_fraction: float = 0.0) -> Any:
    costs = RoundCosts()
    costs.reject(7, ReplyError("a mask that trains 3 entries, not 4"))
    for client in (*range(20, 35), 1):
        costs.fail(client, 'Traceback (most recent call last):\n  File "x.py"\nOSError: full\n')
    costs.fail(3, "")
    costs.missing[2] = "did not answer in time"
    return SimpleNamespace(
        exchange=SimpleNamespace(costs=costs),
        config=RunConfig(missing_clients=missing_clients, shared_fraction=shared_fraction),
        notes={},
    )


class TestSentence:
    def test_it_names_who_is_missing_and_why(self) -> None:
        with pytest.raises(RunError) as refusal:
            settle_missing(state(), range(8), "head", "the head needs the sums of every client")
        assert str(refusal.value) == (
            "the head needs the sums of every client, and 4 of 8 are missing: client 1 failed "
            "(OSError: full); client 2 did not answer in time; client 3 failed (without a "
            "reason); client 7 sent a mask that trains 3 entries, not 4 (missing-clients = "
            "'go-on' goes on without them)"
        )

    def test_many_with_one_reason_are_counted(self) -> None:
        with pytest.raises(RunError, match=r"clients 20, 21, .* 28, 29 and 5 more failed \(OSE"):
            settle_missing(state(), range(15, 40), "head", "")
        with pytest.raises(RunError, match=r": clients 20, 21 and 22 failed \(OSError"):
            settle_missing(state(), range(15, 23), "head", "")

    def test_what_is_refused_with_shared_images_is_not_advised(self) -> None:
        with pytest.raises(RunError) as refusal:
            settle_missing(state(shared_fraction=0.1), range(8), "head", "")
        assert "go-on" not in str(refusal.value)

    def test_nobody_who_was_not_asked(self) -> None:
        settle_missing(state(), [0, 4, 5, 6], "head", "")

    def test_going_on_is_noted(self) -> None:
        found = state("go-on")
        settle_missing(found, range(3), "head", "")
        settle_missing(found, range(2, 4), "head", "")
        noted = {1: "failed (OSError: full)", 2: "did not answer in time"}
        noted[3] = "failed (without a reason)"
        expected = {"head": {str(client): why for client, why in noted.items()}}
        assert found.notes == {"missing-clients": expected}


def space(**values: Any) -> Workspace:
    return build_workspace(RunConfig.from_mapping({**MASKED, **VALUES, **values}))


def server(folder: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder / "test/seed0/checkpoint")
    assert checkpoint is not None
    parts: dict[str, Any] = checkpoint.state["parts"]
    return parts


def test_the_head_is_then_that_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_badly(monkeypatch, "train.head", None)
    summary = run(tmp_path, **VALUES, **{"mask-rule": "none"})
    assert summary["missing-clients"] == {"head": BROKE}
    workspace = space()
    total = empty_statistics(workspace)
    for client in OTHERS:
        own = workspace.counted_positions(client)
        total = total + head_statistics(workspace, head_images(workspace, own, at_start=True))
    assert summary["head"]["images"] == total.count == 9 * 126
    bits = BlobStore(tmp_path / "test/seed0/blobs").get(server(tmp_path)["server"]["head"])
    found, expected = bytes_vector(bits).view(torch.float32), fit_head(workspace, total).vector
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_mask_is_then_that_of_the_others_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_badly(monkeypatch, "train.calibrate", None)
    summary = run(tmp_path, **VALUES)
    assert summary["missing-clients"] == {"scores": BROKE}
    workspace = space()
    assert workspace.head is not None
    workspace.head.load(pooled_head(workspace, at_start=True).vector)
    total = torch.zeros(BACKBONE, dtype=torch.float64)
    for client in OTHERS:
        total += scores(workspace, client_batches(workspace, client), None, 1)
    mask = stored_mask(tmp_path, summary)
    assert int(mask.sum()) == round(0.1 * BACKBONE)
    assert total[mask].max() <= total[~mask].min() * (1 + 1e-5)


OWN = {**VALUES, "mask-scope": "client", "fraction-train": 1.0}


def test_who_has_no_mask_does_not_train_even_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        answer_badly(patch, "train.mask", None)
        summary = run(tmp_path / "unbroken", **OWN)
    assert summary["missing-clients"] == {"masks": BROKE}
    assert sorted(map(int, server(tmp_path / "unbroken")["server"]["own-masks"])) == OTHERS
    (train,) = rows(tmp_path / "unbroken", "train")
    assert (train["clients_ok"], train["clients_failed"]) == ("9", "0")
    add = RunSession.add

    def add_and_die(self: RunSession, row: Any, state: Any) -> None:
        add(self, row, state)
        if row.phase == "start":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        answer_badly(patch, "train.mask", None)
        patch.setattr(RunSession, "add", add_and_die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed", **OWN)
    resumed = run(tmp_path / "resumed", **OWN)
    assert resumed["final-weights-sha256"] == summary["final-weights-sha256"]
    assert resumed["missing-clients"] == summary["missing-clients"]


def test_who_is_not_in_the_sum_is_not_asked_for_a_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_badly(monkeypatch, "train.calibrate", None)
    summary = run(tmp_path, **OWN, **{"mask-rule": "contrast"})
    assert summary["missing-clients"] == {"scores": BROKE}
    assert sorted(map(int, server(tmp_path)["server"]["own-masks"])) == OTHERS


def test_who_sent_no_class_counts_is_in_no_superclient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_badly(monkeypatch, "train.counts", None, times=2)  # once in each of two runs
    chains = {"mask-rule": "none", "superclient-clients": 3}
    summary = run(tmp_path, **VALUES, **chains)
    assert summary["missing-clients"] == {"counts": BROKE}
    groups = server(tmp_path)["algorithm"]["superclients"]
    assert sorted(client for group in groups for client in group) == OTHERS
    # What was stored is taken over, although one client is in no group.
    part = tmp_path / "part"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunSession, "stop_reason", _after_the_groups)
        assert summary_of(part, {**MASKED, **VALUES, **chains})["status"] == "stopped"
    resumed = run(part, **VALUES, **chains)
    assert resumed["missing-clients"] == {"counts": BROKE}
    assert resumed["final-weights-sha256"] == summary["final-weights-sha256"]


def _after_the_groups(session: RunSession) -> str | None:
    there = any(row.phase == "superclients" for row in session.rows)
    return "enough" if there and not session.checkpoint else None


def test_who_is_missing_in_a_head_is_forgotten_with_that_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client_app.app as client

    original = client.head_statistics
    failed: list[int] = []

    def broken_once(*arguments: Any) -> Any:
        if not failed:
            failed.append(1)
            raise ArithmeticError("too large")
        return original(*arguments)

    monkeypatch.setattr(client, "head_statistics", broken_once)
    summary = run(tmp_path, **VALUES, **{"mask-rule": "none", "head-refresh": 1})
    assert failed and summary["head"]["solved"] == 2
    assert "missing-clients" not in summary


def test_a_head_from_nobody_is_refused_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ArithmeticError("too large")

    monkeypatch.setattr("client_app.app.head_statistics", broken)
    with pytest.raises(RunError, match="no client sent its sums"):
        run(tmp_path, **VALUES)
    summary = json.loads((tmp_path / "test/seed0/summary.json").read_text())
    assert len(summary["missing-clients"]["head"]) == 10


def test_a_client_that_failed_in_training_may_still_help_with_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_badly(monkeypatch, "train", None)
    refresh = {"mask-rule": "none", "head-refresh": 1, "missing-clients": "refuse"}
    summary = run(tmp_path, **{**VALUES, **refresh})
    assert summary["head"]["solved"] == 2
    assert rows(tmp_path, "train")[0]["clients_failed"] == "1"
