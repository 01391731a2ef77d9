from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fedta_app.partition import figure as partition_figure
from fedta_app.partition.figure import save_partition_figure
from fedta_app.plotting import new_figure

pytestmark = pytest.mark.draws


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were made, to look into."""
    figures: list[Figure] = []

    def remember(*size: float) -> Figure:
        figures.append(new_figure(*size))
        return figures[-1]

    monkeypatch.setattr(partition_figure, "new_figure", remember)
    return figures


@pytest.mark.parametrize("shape", [(2, 10), (1, 1), (100, 100), (10_000, 10)])
def test_a_png_of_bounded_size_without_pyplot(tmp_path: Path, shape: tuple[int, int]) -> None:
    counts = np.random.default_rng(0).integers(0, 5, shape)
    save_partition_figure(tmp_path / "partition.png", counts)
    height, width, _ = imread(tmp_path / "partition.png").shape
    assert 300 < height < 2000 and 500 < width < 2000
    assert matplotlib.pyplot.get_fignums() == []


def test_every_client_is_shown_and_absent_classes_are_white(
    tmp_path: Path, saved: list[Figure]
) -> None:
    counts = np.array([[5, 0, 1], [0, 0, 9]])
    save_partition_figure(tmp_path / "partition.png", counts)
    shown = saved[0].axes[0].images[0].get_array()
    assert np.array_equal(shown.filled(0), counts)
    assert np.array_equal(shown.mask, counts == 0)
    assert "2 clients" in saved[0].axes[0].get_title()


def test_many_clients_are_thinned_and_the_title_says_so(
    tmp_path: Path, saved: list[Figure]
) -> None:
    counts = np.arange(1, 10_001)[:, None].repeat(10, axis=1)
    save_partition_figure(tmp_path / "partition.png", counts)
    axes = saved[0].axes[0]
    rows = axes.images[0].get_array()[:, 0]
    assert len(rows) == 200 and rows[0] == 1 and rows[-1] == 10_000
    assert "200 of 10,000 clients" in axes.get_title()
    texts = [label.get_text() for label in axes.get_yticklabels()]
    ticks = dict(zip(axes.get_yticks().astype(int), texts, strict=True))
    assert ticks[0] == "0" and ticks[199] == "9,999"
    assert all(int(text.replace(",", "")) == rows[row] - 1 for row, text in ticks.items())
