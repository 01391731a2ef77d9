"""The matrix on quadratics, whose answer is known, and the row that summarises it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedta_app.analysis.interference import (
    loss_change_matrix,
    save_interference_figure,
    save_matrix,
    summarise,
)

CLIENTS, SIZE = 4, 6


def quadratics() -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return curvatures A_j (n, N, N), optima c_j (n, N), a start, and updates (N,)."""
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(CLIENTS, SIZE, SIZE, generator=generator, dtype=torch.float64)
    curvatures = roots @ roots.mT
    optima = torch.randn(CLIENTS, SIZE, generator=generator, dtype=torch.float64)
    start = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    updates = [0.05 * (a @ (c - start)) for a, c in zip(curvatures, optima, strict=True)]
    return curvatures, optima, start, updates


def test_the_matrix_on_quadratics_is_the_taylor_polynomial() -> None:
    """L_j(w + v) - L_j(w) = v A_j (w - c_j) + v A_j v / 2, exactly."""
    curvatures, optima, start, updates = quadratics()

    def losses(weights: Tensor) -> list[float]:
        gaps = weights - optima
        return [float(gap @ a @ gap / 2) for gap, a in zip(gaps, curvatures, strict=True)]

    found = loss_change_matrix(start, updates, losses)
    for i, update in enumerate(updates):
        for j in range(CLIENTS):
            slope = update @ curvatures[j] @ (start - optima[j])
            bend = update @ curvatures[j] @ update / 2
            assert float(found[i, j]) == pytest.approx(float(slope + bend), rel=1e-9, abs=1e-12)
    assert (found.diagonal() < 0).any()


def test_a_row_summarises_the_pairs() -> None:
    matrix = torch.tensor([[-1.0, 2.0, -4.0], [1.0, -3.0, 5.0], [0.0, 8.0, -2.0]])
    vectors = [torch.tensor([3.0, 4.0]), torch.tensor([-3.0, 4.0]), torch.tensor([0.0, 1.0])]
    row = summarise(7, 0.1, matrix.double(), vectors, head_accuracy=0.5)
    assert (row.round, row.lr, row.clients, row.head_accuracy) == (7, 0.1, 3, 0.5)
    assert row.own == -2.0 and row.others == 2.0 and row.harmed == pytest.approx(4 / 6)
    assert row.cosine == pytest.approx((7 / 25 + 4 / 5 + 4 / 5) / 3)
    assert row.conflict == pytest.approx((0.5 + 0 + 0) / 3)
    assert row.norm == pytest.approx(11 / 3) and row.fresh_head_accuracy is None


@pytest.mark.draws
def test_matrix_and_figure_are_written(tmp_path: Path) -> None:
    matrix = torch.tensor([[-0.5, 0.25], [0.125, -1.0]], dtype=torch.float64)
    row = summarise(1, 0.1, matrix, [torch.ones(3), -torch.ones(3)], head_accuracy=0.5)
    save_matrix(tmp_path / "matrix.csv", matrix, [4, 9])
    assert (tmp_path / "matrix.csv").read_text().splitlines() == [
        "vector of,loss of 4,loss of 9", "4,-0.5,0.25", "9,0.125,-1",
    ]  # fmt: skip
    save_interference_figure(tmp_path / "figure.png", {1: row}, matrix, [4, 9])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
