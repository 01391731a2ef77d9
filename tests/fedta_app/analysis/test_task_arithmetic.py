"""Scaling and negation of task vectors, against plain loops over a model's weights."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from fedta_app.analysis.task_arithmetic import (
    Negated,
    Scaled,
    best_scale,
    forgotten,
    negation,
    save_points,
    scaling,
)
from fedta_app.config import RunConfig
from fedta_app.training.steps import evaluate
from fedta_app.training.workspace import Workspace, build_workspace


def workspace_of(**values: Any) -> Workspace:
    keys = {"partition": "classes", "num-classes-per-client": 2, "num-clients": 10, "threads": 1}
    return build_workspace(RunConfig.from_mapping({**keys, **values}))


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return workspace_of()


def vectors_of(workspace: Workspace, seed: int, number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = workspace.weights.vector.numel()
    return [0.02 * torch.randn(size, generator=generator) for _ in range(number)]


def test_scaling_measures_every_multiple(workspace: Workspace) -> None:
    start = workspace.weights.vector.clone()
    (step,) = vectors_of(workspace, 0, 1)
    points = scaling(workspace, start, start + step, (-1.0, 0.0, 0.5))
    for point, weights in zip(points, (start - step, start, start + 0.5 * step), strict=True):
        workspace.weights.load(weights)
        loss, accuracy = evaluate(workspace, workspace.evaluation_sets[0])
        assert point.val_loss == pytest.approx(loss, rel=1e-4)
        assert point.val_accuracy == pytest.approx(accuracy, abs=0.01)
    workspace.weights.load(start)


def test_negation_subtracts_one_client_in_units_of_the_run(workspace: Workspace) -> None:
    start = workspace.weights.vector.clone()
    moved, *own = vectors_of(workspace, 1, 3)
    final = start + moved
    points = negation(workspace, start, final, dict(zip((3, 7), own, strict=True)), (0.0, 2.0))
    assert [(point.client, point.length) for point in points] == [(3, 0), (3, 2), (7, 0), (7, 2)]
    val = workspace.evaluation_sets[0]
    held = set(workspace.client_data(7).labels.tolist())
    assert len(held) == 2
    target = [position for position, label in enumerate(val.labels.tolist()) if label in held]
    others = [position for position in range(len(val)) if position not in target]
    workspace.weights.load(final - 2.0 * own[1] * (moved.norm() / own[1].norm()))
    assert points[3].target == pytest.approx(evaluate(workspace, val.subset(target))[1], abs=0.03)
    assert points[3].control == pytest.approx(evaluate(workspace, val.subset(others))[1], abs=0.01)
    workspace.weights.load(start)


def test_what_cannot_be_negated_is_left_out(workspace: Workspace) -> None:
    start = workspace.weights.vector.clone()
    (step,) = vectors_of(workspace, 2, 1)
    assert negation(workspace, start, start, {0: step}) == []  # the run did not move
    assert negation(workspace, start, start + step, {0: torch.zeros_like(step)}) == []
    iid = workspace_of(partition="iid")
    assert negation(iid, start, start + step, {0: step}) == []  # every class is its own
    workspace.weights.load(start)


def test_the_best_scale_is_the_nearest_to_one_of_equals() -> None:
    points = [Scaled(0.5, 1.0, 0.8), Scaled(1.25, 1.0, 0.8), Scaled(0.0, 1.0, 0.7)]
    assert best_scale(points) == 1.25


def test_what_was_forgotten_is_read_while_the_control_keeps_its_accuracy() -> None:
    first = [Negated(0, 0, 0.8, 0.5), Negated(0, 1, 0.6, 0.48), Negated(0, 2, 0.1, 0.4)]
    second = [Negated(1, 0, 0.5, 0.5), Negated(1, 1, 0.1, 0.1), Negated(1, 2, 0.4, 0.5)]
    assert forgotten(first) == pytest.approx(0.2)
    assert forgotten([*first, *second]) == pytest.approx((0.2 + 0.1) / 2)
    assert forgotten([]) is None


def test_points_are_saved_as_csv(tmp_path: Path) -> None:
    save_points(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()
    save_points(tmp_path / "some.csv", [Negated(4, 0.5, 0.25, 0.75)])
    frame = pd.read_csv(tmp_path / "some.csv")
    assert frame.to_dict("records") == [
        {"client": 4, "length": 0.5, "target": 0.25, "control": 0.75}
    ]
