"""The heat maps as files: a picture is written, whole, for the shapes that occur."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import Tensor

from fedta_app.analysis import mask_overlap_matrix
from fedta_app.analysis.task_figures import (
    save_block_density,
    save_cosine_matrix,
    save_mask_overlap_matrix,
    save_sign_conflict_matrix,
)

pytestmark = pytest.mark.draws


def assert_picture(path: Path) -> None:
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 200
    assert picture.shape[1] > 200
    assert len({tuple(pixel) for pixel in picture[::7, ::7].reshape(-1, picture.shape[2])}) > 5
    left = {entry.suffix for entry in path.parent.iterdir()}
    assert left <= {".png", ".csv"}  # no temporary is left


@pytest.mark.parametrize("number", [1, 4, 45])
@pytest.mark.parametrize("save", [save_cosine_matrix, save_sign_conflict_matrix])
def test_square_matrices(
    tmp_path: Path, number: int, save: Callable[[Path, Tensor, list[str]], None]
) -> None:
    matrix = torch.linspace(-0.3, 0.8, number**2).reshape(number, number)
    matrix[0, -1] = torch.nan
    before = matrix.clone()
    save(tmp_path / "figure.png", matrix, [str(client) for client in range(number)])
    assert_picture(tmp_path / "figure.png")
    assert torch.equal(matrix.nan_to_num(9.0), before.nan_to_num(9.0))
    lines = (tmp_path / "figure.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    assert [len(row) for row in cells] == [number] * number
    assert {cells[i][i] for i in range(number)} == {""}  # the diagonal says nothing
    if number == 4:
        assert float(cells[2][1]) == pytest.approx(float(matrix[2, 1]), rel=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_mask_overlap(tmp_path: Path, number: int) -> None:
    masks = [torch.arange(12) % (client + 2) == 0 for client in range(number)]
    labels = [f"client {client}" for client in range(number)]
    save_mask_overlap_matrix(tmp_path / "figure.png", mask_overlap_matrix(masks), labels)
    assert_picture(tmp_path / "figure.png")


def test_block_density(tmp_path: Path) -> None:
    table = {"embed": {"pos_embed": 0.0}, "blocks.0": {"norm1": 0.25, "mlp.fc1": 0.003}}
    save_block_density(tmp_path / "figure.png", table)
    assert_picture(tmp_path / "figure.png")
