"""Interference, measured as a change of function: whose loss an update changes, and how.

Let w be the weights before a round, tau_i the update of client i and L_j the mean loss on images of
client j. The matrix is

    M[i, j] = L_j(w + tau_i) - L_j(w).

Its diagonal says what an update does for the client that made it; a positive entry off the diagonal
says that it harms another client. Updates may be orthogonal and still interfere, since the loss is
not linear in the weights: cosines and sign conflicts are recorded beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedta_app.analysis.matrices import cosine_matrix, sign_conflict_matrix
from fedta_app.files import write_atomically
from fedta_app.plotting import (
    draw_line,
    heat_map,
    name_cells,
    new_figure,
    numbers,
    save_figure,
    show_percent,
)

Losses = Callable[[Tensor], Sequence[float]]  # weights (N,) -> the loss of each client
MOST_IMAGES = 100  # of a client: as many losses of as many clients are measured
_MOST_NUMBERS = 12


@dataclass(frozen=True)
class Interference:
    """A row of interference.csv.

    Attributes
    ----------
    round : int
    lr : float
        The clients' learning rate in the round.
    clients : int
        Those whose updates were compared.
    own, others : float
        Mean change of the loss by an update: on its own client's images, and on each other's.
    harmed : float
        Share of the pairs of different clients where the loss rises.
    cosine, conflict : float
        Mean over pairs of the updates' cosine, and of their share of conflicting signs.
    norm : float
        Mean length of the updates.
    head_accuracy, fresh_head_accuracy : float or None
        Validation accuracy after the round with the head in use, and with a ridge head that is
        solved afresh for the features of now: their distance is the drift of the features under
        the head.
    """

    round: int
    lr: float
    clients: int
    own: float
    others: float
    harmed: float
    cosine: float
    conflict: float
    norm: float
    head_accuracy: float | None = None
    fresh_head_accuracy: float | None = None


def loss_change_matrix(start: Tensor, vectors: Sequence[Tensor], losses: Losses) -> Tensor:
    """Return the change of every client's loss by every client's vector, float64 (n, n).

    Parameters
    ----------
    start : Tensor of shape (N,)
        The weights that a vector is added to.
    vectors : sequence of n Tensors of shape (N,)
    losses : callable
        Returns the n losses at some weights.

    Returns
    -------
    Tensor
        Row i, column j: the loss of client j after adding vector i, minus that before.

    Examples
    --------
    Two clients that want to go opposite ways from 0, each half-way to its optimum:

    >>> optima = torch.tensor([[1.0], [-1.0]])
    >>> def losses(weights):
    ...     return [float((weights - optimum).square().sum()) for optimum in optima]
    >>> loss_change_matrix(torch.zeros(1), [0.5 * optimum for optimum in optima], losses).tolist()
    [[-0.75, 1.25], [1.25, -0.75]]
    """
    before = torch.tensor(losses(start), dtype=torch.float64)
    after = [torch.tensor(losses(start + vector), dtype=torch.float64) for vector in vectors]
    return torch.stack(after) - before


def images_of_matrix(clients: int, held: float) -> float:
    """Return how many images the losses of a matrix take, to estimate its time.

    Parameters
    ----------
    clients : int
        Those whose updates are compared.
    held : float
        Images of a client.

    Examples
    --------
    >>> images_of_matrix(10, 450)  # 100 images of each, under ten updates and under none
    11000
    """
    return (clients + 1) * clients * min(held, MOST_IMAGES)


def summarise(
    number: int, lr: float, matrix: Tensor, vectors: Sequence[Tensor], **accuracies: float
) -> Interference:
    """Return the row of a round, given its matrix (n, n) and its updates, n vectors (N,)."""
    others = _pairs(matrix)
    norms = torch.stack([torch.linalg.vector_norm(vector) for vector in vectors])
    return Interference(
        number,
        lr,
        len(vectors),
        float(matrix.diagonal().mean()),
        float(others.mean()),
        float((others > 0).double().mean()),
        float(_pairs(cosine_matrix(vectors)).nanmean()),
        float(_pairs(sign_conflict_matrix(vectors)).nanmean()),
        float(norms.mean()),
        **accuracies,
    )


def _pairs(matrix: Tensor) -> Tensor:
    """Return the entries off the diagonal."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def save_matrix(path: Path, matrix: Tensor, clients: Sequence[int]) -> None:
    """Write a matrix as CSV: a row for each client's vector, a column for each client's loss."""
    lines = [",".join(["vector of", *(f"loss of {client}" for client in clients)])]
    for client, row in zip(clients, matrix.tolist(), strict=True):
        lines.append(",".join([str(client), *(f"{value:.6g}" for value in row)]))
    write_atomically(path, "\n".join(lines) + "\n")


def save_interference_figure(
    path: Path, rows: Mapping[int, Interference], matrix: Tensor, clients: Sequence[int]
) -> None:
    """Save the rows by round, and the matrix of the last one, as PNG."""
    figure = new_figure(13, 3.9)
    change, drift, last = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for axis, columns in (
        (change, {"own": "its own client's images", "others": "other clients' images"}),
        (
            drift,
            {
                "head_accuracy": "the head in use",
                "fresh_head_accuracy": "a head solved afresh",
            },
        ),
    ):
        for column, label in columns.items():
            points = [(number, getattr(row, column)) for number, row in rows.items()]
            draw_line(axis, [point for point in points if point[1] is not None], label, "o-")
        axis.set_xlabel("round")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(frameon=False, fontsize="small")
    change.axhline(0, color="0.5", linewidth=0.8)
    change.set_title("Change of loss by adding one update", fontsize="medium")
    change.set_ylabel("cross-entropy")
    drift.set_title("The head after the round", fontsize="medium")
    show_percent(drift, "validation accuracy")
    grid = matrix.numpy()
    reach = float(np.nanmax(abs(grid))) or 1.0
    texts = numbers(grid, 2) if len(grid) <= _MOST_NUMBERS else {}
    image = heat_map(last, grid, colours="RdBu_r", limits=(-reach, reach), texts=texts, square=True)
    names = [str(client) for client in clients]
    name_cells(last, names, names)
    last.set_ylabel("update of client")
    last.set_xlabel("loss on images of client")
    last.set_title(f"Change of loss, round {max(rows)}", fontsize="medium")
    figure.colorbar(image, ax=last)
    save_figure(path, figure)
