"""Head, mask and masked training, from start to end, in this process, on digits."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.config import RunConfig
from fedta_app.masks import MASK_RULES, calibrate_mask, round_density, rule_named
from fedta_app.runs.session import RunSession
from fedta_app.training.head_fit import fit_head, head_statistics
from fedta_app.training.scoring import (
    ScoringBatches,
    calibration,
    own_mask,
    scores,
    server_batches,
)
from fedta_app.training.workspace import build_workspace, shared_workspace
from server_app.app import app as server_app
from tests.runs import summary_of
from tests.server_app.masked import (
    BACKBONE,
    CLIENTS,
    MASKED,
    bits_of,
    final_weights,
    initial_weights,
    rows,
    run,
    stored_mask,
)


# A rule that compares a client with others makes masks of clients' own: see test_contrast.py.
@pytest.mark.parametrize("rule", [r for r in MASK_RULES if not rule_named(r).against_others])
def test_every_rule_trains_exactly_its_share_and_nothing_else(tmp_path: Path, rule: str) -> None:
    summary = run(tmp_path, **{"mask-rule": rule})
    expected = round_density(0.9, BACKBONE)
    assert summary["mask"]["trained"] == expected
    mask = stored_mask(tmp_path, summary)
    assert int(mask.sum()) == expected
    before, after = bits_of(initial_weights()), bits_of(final_weights(tmp_path))
    assert torch.equal(before[~mask], after[~mask])
    assert float((before[mask] != after[mask]).float().mean()) > 0.9


# The mask is made before the strategy has a say, so that every pair of the two is for slow tests.
SCOPES = ["client", "vote", "union", "intersection", "server"]
STRATEGIES = ["masked-fedavg", "fedavg", "ties", "task-arithmetic"]
PAIRS = [
    pytest.param(
        scope,
        strategy,
        marks=[] if SCOPES[0] == scope or STRATEGIES[0] == strategy else [pytest.mark.slow],
    )
    for scope in SCOPES
    for strategy in STRATEGIES
]


@pytest.mark.parametrize(("scope", "strategy"), PAIRS)
def test_every_scope_and_strategy_keeps_frozen_bits(
    tmp_path: Path, scope: str, strategy: str
) -> None:
    summary = run(tmp_path, **{"mask-scope": scope, "strategy": strategy, "server-scale": 0.1})
    mask = stored_mask(tmp_path, summary)
    before, after = bits_of(initial_weights()), bits_of(final_weights(tmp_path))
    assert torch.equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).any()
    if scope in ("vote", "server"):
        assert int(mask.sum()) == round_density(0.9, BACKBONE)
    else:
        assert (int(mask.sum()) < round_density(0.9, BACKBONE)) == (scope == "intersection")


def test_only_trained_values_travel(tmp_path: Path) -> None:
    often = {"num-server-rounds": 6, "fraction-train": 1.0, "eval-every": 6}
    run(tmp_path / "dense", **often, **{"mask-rule": "none", "strategy": "fedavg"})
    run(tmp_path / "masked", **often)
    for column in ("bytes_up", "bytes_down"):
        dense, masked = (
            sum(int(row[column]) for row in rows(tmp_path / name, "train"))
            for name in ("dense", "masked")
        )
        assert 0.09 * dense < masked <= 0.11 * dense  # the mask's own bits included


def test_what_a_client_was_told_is_not_told_again(tmp_path: Path) -> None:
    run(tmp_path, **{"num-server-rounds": 6, "fraction-train": 1.0, "eval-every": 6})
    down = [int(row["bytes_down"]) for row in rows(tmp_path, "train")]
    values = CLIENTS * 4 * round_density(0.9, BACKBONE)
    assert down == [values + CLIENTS * BACKBONE // 8, *[values] * 5]


def test_nodes_of_a_deployment_are_told_again_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have started again on empty disks meanwhile, and the checkpoint cannot know."""
    values = {"num-server-rounds": 3, "fraction-train": 1.0, "eval-every": 6}
    add = RunSession.add

    def add_and_stop(session: RunSession, row: Any, state: Any) -> None:
        add(session, row, state)
        if (row.phase, row.round) == ("train", 2):
            (session.directory.path / "stop").touch()

    with monkeypatch.context() as patch:
        patch.setattr(RunSession, "add", add_and_stop)
        assert summary_of(tmp_path, {**MASKED, **values})["status"] == "stopped"
    monkeypatch.setattr("server_app.state.is_deployment", lambda grid: True)
    run(tmp_path, **values)
    first, second, third = (int(row["bytes_down"]) for row in rows(tmp_path, "train"))
    head = (64 + 1) * 10 * 4
    assert first - second == CLIENTS * BACKBONE // 8  # the head was sent with the calibration
    assert third - second == CLIENTS * (BACKBONE // 8 + head)


def test_the_federated_mask_is_the_centralised_one_whatever_the_partition(tmp_path: Path) -> None:
    masks = {}
    partitions: list[dict[str, Any]] = [
        {"partition": "iid"},
        {"num-classes-per-client": 1, "num-clients": 10},
    ]
    everyone = {"num-server-rounds": 1, "calibration-examples": 0}  # all images of all clients
    for number, values in enumerate(partitions):
        folder = tmp_path / str(number)
        summary = run(folder, **values, **everyone)
        masks[number] = stored_mask(folder, summary)
    space = build_workspace(RunConfig.from_mapping({**MASKED, **everyone}))
    assert space.head is not None
    space.head.load(fit_head(space, head_statistics(space, space.data.train)).vector)
    everything = ScoringBatches(space, space.data.train, torch.arange(len(space.data.train)))
    central = calibration(space).run(lambda mask, round_: scores(space, everything, mask, round_))
    for mask in masks.values():
        # Sums in another order may swap entries whose scores are equal up to rounding.
        assert int((mask != central.mask).sum()) <= 2e-4 * BACKBONE


@pytest.mark.parametrize("rule", ["least-sensitive", "random"])
def test_the_server_finds_the_mask_that_calibrate_mask_finds(rule: str) -> None:
    space = build_workspace(RunConfig.from_mapping({**MASKED, "mask-rule": rule, "seed": 3}))
    assert space.head is not None
    space.head.load(fit_head(space, head_statistics(space, space.data.train)).vector)
    config = space.config
    alone = calibrate_mask(
        space.model,
        server_batches(space),
        rule=rule,
        sparsity=config.sparsity,
        num_rounds=config.calibration_rounds,
        soft_value=config.soft_value,
        seed=config.seed,
    )
    assert torch.equal(own_mask(space, None).mask, space.weights.layout.flatten(alone))


@pytest.mark.parametrize(("fraction", "images"), [(1.0, 1260), (0.5, 630), (0.2, 252)])
def test_the_start_is_the_same_for_every_partition(
    tmp_path: Path, fraction: float, images: int
) -> None:
    starts = []
    short = {"num-server-rounds": 1, "mask-rule": "random", "head-fraction": fraction}
    for number, values in enumerate(({"partition": "iid"}, {}, {"num-classes-per-client": 5})):
        summary = run(tmp_path / str(number), **values, **short)
        assert summary["head"]["images"] == images
        (start,) = rows(tmp_path / str(number), "start")
        starts.append((start["val_accuracy"], start["test_accuracy"]))
    assert len(set(starts)) == 1
    assert float(starts[0][1]) > 0.9


def test_masks_of_their_own_travel_once_as_bits(tmp_path: Path) -> None:
    run(tmp_path, **{"mask-scope": "client", "fraction-train": 1.0})
    (calibrate,) = rows(tmp_path, "calibrate")
    assert int(calibrate["bytes_up"]) == CLIENTS * BACKBONE // 8
    first, second = rows(tmp_path, "train")
    assert int(first["bytes_up"]) == CLIENTS * 4 * round_density(0.9, BACKBONE)
    assert int(first["bytes_down"]) - int(second["bytes_down"]) == CLIENTS * BACKBONE // 8


def test_a_probe_beats_chance_and_is_frozen(tmp_path: Path) -> None:
    values = {"head": "probe", "probe-rounds": 15, "num-classes-per-client": 5, "probe-lr": 0.2}
    summary = run(tmp_path, **values)
    assert summary["head"] == {"kind": "probe", "rounds": 15}
    (start,) = rows(tmp_path, "start")
    assert float(start["test_accuracy"]) > 0.6
    assert len(rows(tmp_path, "head")) == 15


def test_the_agreement_rule_costs_a_second_vector(tmp_path: Path) -> None:
    run(tmp_path / "ours", **{"mask-rule": "agreement"})
    run(tmp_path / "least")
    ours = [int(row["bytes_up"]) for row in rows(tmp_path / "ours", "calibrate")]
    least = [int(row["bytes_up"]) for row in rows(tmp_path / "least", "calibrate")]
    assert least == [CLIENTS * 4 * BACKBONE] * 2
    assert ours == [2 * value for value in least]


def test_a_threshold_in_place_of_a_share(tmp_path: Path) -> None:
    values = {"mask-rule": "highest-magnitude", "score-threshold": 0.05, "calibration-rounds": 1}
    summary = run(tmp_path, **values)
    expected = int((initial_weights().abs() >= np.float32(0.05)).sum())
    assert summary["mask"]["trained"] == expected
    assert summary["mask"]["density"] == expected / BACKBONE


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mask-scope": "client"},
        {"mask-rule": "agreement", "task-figures": True},
        {
            "head": "probe",
            "probe-rounds": 3,
            "probe-lr": 0.5,
            "num-classes-per-client": 5,
            "clip-norm": 0.1,
        },
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
    config = {**MASKED, "results-dir": str(tmp_path / "broken"), **values}
    for _ in range(40):
        shared_workspace.cache_clear()  # as in a process of its own
        run_in_process(server_app, client_app, config, CLIENTS)
        path = tmp_path / "broken/test/seed0/summary.json"
        broken = json.loads(path.read_text())
        if broken["status"] == "finished":
            break
    assert len(broken["sessions"]) > 5
    for key in ("final-weights-sha256", "initial-weights-sha256", "bytes-up", "bytes-down"):
        assert broken[key] == unbroken[key], key
    assert broken.get("mask") == unbroken.get("mask")
    assert broken["head"] == unbroken["head"]
    for name in ("scaling.csv", "negation.csv"):
        one, other = (tmp_path / run / "test/seed0" / name for run in ("unbroken", "broken"))
        assert one.exists() == bool(values.get("task-figures"))
        assert not one.exists() or one.read_text() == other.read_text()


def test_ties_of_votes_favour_no_layer(tmp_path: Path) -> None:
    summary = run(tmp_path, **{"mask-scope": "vote", "mask-rule": "random"})
    first, second = stored_mask(tmp_path, summary).chunk(2)
    assert float(first.float().mean()) == pytest.approx(float(second.float().mean()), abs=0.01)


@pytest.mark.draws
def test_figures_of_task_vectors_are_saved_on_request(tmp_path: Path) -> None:
    run(tmp_path, **{"task-figures": True, "mask-scope": "client"})
    found = (tmp_path / "test/seed0").glob("*.png")
    names = {path.name for path in found if path.read_bytes().startswith(b"\x89PNG")}
    assert names >= {"mask_density.png", "cosine.png", "sign_conflict.png", "mask_overlap.png"}


def test_scaling_and_negation_end_a_run_that_asks_for_them(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    summary = run(tmp_path / "asked", **{"task-figures": True})
    assert summary["final-weights-sha256"] == plain["final-weights-sha256"]
    folder = tmp_path / "asked/test/seed0"
    with (folder / "scaling.csv").open() as stream:
        scaled = {float(row["scale"]): float(row["val_accuracy"]) for row in csv.DictReader(stream)}
    assert scaled[0] == pytest.approx(float(rows(tmp_path / "asked", "start")[0]["val_accuracy"]))
    last = float(rows(tmp_path / "asked", "train")[-1]["val_accuracy"])
    assert scaled[1] == pytest.approx(last, abs=0.01)  # added up in another order
    assert scaled[summary["task-vectors"]["best-scale"]] == max(scaled.values())
    with (folder / "negation.csv").open() as stream:
        negated = list(csv.DictReader(stream))
    assert len({row["client"] for row in negated}) == 3
    assert "forgotten" in summary["task-vectors"]


def test_a_second_run_in_one_process_starts_where_the_first_did(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    second = run(tmp_path / "first", resume=False)
    for key in ("initial-weights-sha256", "final-weights-sha256"):
        assert first[key] == second[key]


def test_how_much_is_measured_does_not_change_what_is_trained(tmp_path: Path) -> None:
    shas = {run(tmp_path / str(n), **{"eval-size": n})["final-weights-sha256"] for n in (0, 15)}
    assert len(shas) == 1
