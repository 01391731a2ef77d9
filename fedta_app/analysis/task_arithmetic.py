"""Scaling and negation of the task vectors of a finished run, on validation images.

Let theta_0 and theta_T be the weights before and after training, and tau_k the update of client k
in the last server_round.

- scaling: theta_0 + a (theta_T - theta_0), measured on all validation images;
- negation: theta_T - l |theta_T - theta_0| tau_k / |tau_k|, measured on the client's classes
  ("target"), which should be forgotten, and on the others ("control"), which should not.

Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv 2212.04089, sections 3 and
4. As there, the result is that of the greatest length l with 95 % of the control accuracy left.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedta_app.data.loading import ImageSet
from fedta_app.progress import counting
from fedta_app.runs.metrics import write_csv
from fedta_app.seeding import numpy_generator
from fedta_app.training.steps import evaluate
from fedta_app.training.workspace import Workspace

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0)
CONTROL_KEPT = 0.95
_MOST_CLIENTS = 5
_MOST_IMAGES = 500  # of a target, and of a control


@dataclass(frozen=True)
class Scaled:
    """The measurement at one multiple of the task vector of the whole run."""

    scale: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Negated:
    """The measurement after subtracting the task vector of one client.

    `length` is in units of |theta_T - theta_0|; target and control are validation accuracies on
    the client's classes and on the others.
    """

    client: int
    length: float
    target: float
    control: float


def scaling(
    workspace: Workspace, start: Tensor, final: Tensor, scales: Sequence[float] = SCALES
) -> list[Scaled]:
    """Return the measurement of start + a (final - start), vectors (N,), for every scale a."""
    images, vector = workspace.evaluation_sets[0], final - start
    found = []
    with counting("scales of the task vector", len(scales)) as done:
        for scale in scales:
            workspace.weights.load(torch.add(start, vector, alpha=scale))
            found.append(Scaled(scale, *evaluate(workspace, images)))
            done.add()
    return found


def negation(
    workspace: Workspace,
    start: Tensor,
    final: Tensor,
    vectors: Mapping[int, Tensor],
    lengths: Sequence[float] = LENGTHS,
) -> list[Negated]:
    """Return the measurements of the final weights minus the task vector (N,) of one client each.

    Clients with every class are left out, because they have no control. If the weights did not
    change in the run, the result is empty.
    """
    unit = float(torch.linalg.vector_norm(final - start))
    found = []
    clients = sorted(vectors)[:_MOST_CLIENTS]
    with counting("negated task vectors", len(clients)) as done:
        for client in clients:
            norm = float(torch.linalg.vector_norm(vectors[client]))
            target, control = _target_and_control(workspace, client)
            if unit and norm and len(target) and len(control):
                for length in lengths:
                    step = -length * unit / norm
                    workspace.weights.load(torch.add(final, vectors[client], alpha=step))
                    accuracies = [evaluate(workspace, images)[1] for images in (target, control)]
                    found.append(Negated(client, length, *accuracies))
            done.add()
    return found


def _target_and_control(workspace: Workspace, client: int) -> tuple[ImageSet, ImageSet]:
    """Return validation images of the client's classes, and of the other classes."""
    images = workspace.evaluation_sets[0]
    own = workspace.data.train.labels[workspace.client_positions(client)]
    held = torch.isin(images.labels, own.unique())
    return _some(workspace, held, client, "target"), _some(workspace, ~held, client, "control")


def _some(workspace: Workspace, chosen: Tensor, client: int, what: str) -> ImageSet:
    positions = np.flatnonzero(chosen.cpu().numpy())
    order = numpy_generator(workspace.config.seed, "negation", what, client)
    kept = np.sort(order.permutation(positions)[:_MOST_IMAGES])
    return workspace.evaluation_sets[0].subset(kept)


def images_measured(val_images: int, clients: int) -> int:
    """Return the most images that `scaling` and `negation` evaluate, to estimate their time."""
    pairs = min(clients, _MOST_CLIENTS) * len(LENGTHS)
    return len(SCALES) * val_images + pairs * min(val_images, 2 * _MOST_IMAGES)


def best_scale(points: Sequence[Scaled]) -> float:
    """Return the scale with the highest validation accuracy; of ties, the nearest to 1."""
    return max(points, key=lambda point: (point.val_accuracy, -abs(point.scale - 1))).scale


def forgotten(points: Iterable[Negated]) -> float | None:
    """Return the target accuracy lost by negation while the control keeps 95 % of its accuracy.

    The result is a mean over clients, or None without points.
    """
    clients: dict[int, list[Negated]] = {}
    for point in points:
        clients.setdefault(point.client, []).append(point)
    losses = []
    for found in clients.values():
        before = next(point for point in found if point.length == 0)
        kept = [point for point in found if point.control >= CONTROL_KEPT * before.control]
        after = max(kept, key=lambda point: point.length)
        losses.append(before.target - after.target)
    return float(np.mean(losses)) if losses else None


def save_points(path: Path, points: Sequence[Scaled] | Sequence[Negated]) -> None:
    """Write a CSV file with a row for each point; no points give no file."""
    if points:
        write_csv(path, points, [entry.name for entry in fields(points[0])])
