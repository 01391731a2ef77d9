"""How figures are drawn and written."""

from pathlib import Path

import numpy as np
import pytest

from fedta_app.plotting import (
    heat_map,
    image_bytes,
    legend_below,
    new_figure,
    numbers,
    panel_grid,
    save_figure,
)

pytestmark = pytest.mark.draws


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_same_figure_is_the_same_file(tmp_path: Path, suffix: str, begins: bytes) -> None:
    for name in ("a", "b"):
        figure = new_figure(2, 2)
        figure.add_subplot().plot([0, 1], [0, 1], label="line")
        save_figure(tmp_path / f"{name}{suffix}", figure)
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second and first.startswith(begins)
    assert len(list(tmp_path.iterdir())) == 2  # no temporary is left


def test_cells_have_readable_numbers_and_none_where_there_is_no_value() -> None:
    grid = np.array([[0.0, 1.0], [-0.001, np.nan]])
    texts = numbers(grid, 2)
    assert texts == {(0, 0): "0.00", (0, 1): "1.00", (1, 0): "0.00"}
    axis = new_figure(2, 2).add_subplot()
    heat_map(axis, grid, colours="Greys", limits=(0, 1), texts=texts)
    assert [text.get_color() for text in axis.texts] == ["black", "white", "black"]


@pytest.mark.parametrize(("number", "size"), [(1, (9, 3)), (4, (16, 5))])
def test_panels_stand_in_rows(number: int, size: tuple[int, int]) -> None:
    figure, axes = panel_grid(number, panel=(5, 2), margin=(1, 1), least_width=9)
    assert len(axes) == number
    assert tuple(figure.get_size_inches()) == size
    shown = [axis for axis in figure.axes if axis.axison]
    assert shown == axes


def test_a_label_stands_once_below_all_panels() -> None:
    figure, axes = panel_grid(2, panel=(3, 3), margin=(0, 0))
    for axis in axes:
        axis.plot([0, 1], label="both")
    axes[1].plot([1, 0], label="second")
    legend_below(figure, axes, 3)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["both", "second"]
    assert image_bytes(figure)
