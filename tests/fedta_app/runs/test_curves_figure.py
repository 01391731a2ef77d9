"""What curves.png shows of a run: lines, labels, axes and notes."""

import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedta_app import plotting
from fedta_app.config import RunConfig
from fedta_app.runs.curves_figure import save_curves
from fedta_app.runs.metrics import Row

FEDERATED = RunConfig(num_server_rounds=20)
EPOCHS = RunConfig(engine="centralized", local_steps=0, num_server_rounds=20)


def rows(config: RunConfig) -> list[Row]:
    """Return the rows of a run that rises from chance to a plateau, measured in every round."""
    found = [Row(1, "head"), Row(1, "calibrate")]
    for number in range(21):
        accuracy = 0.98 - 0.88 * math.exp(-2 * number)
        test = config.measure_test == "always" or (config.measure_test == "end" and number == 20)
        found.append(
            Row(
                number,
                "train" if number else "start",
                train_loss=2.0 * math.exp(-0.5 * number) if number else None,
                val_accuracy=accuracy,
                val_loss=0.3,
                test_accuracy=accuracy if test else None,
                test_loss=0.4 if test else None,
            )
        )
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    found: list[Figure] = []
    monkeypatch.setattr(plotting, "save_figure", lambda path, figure: found.append(figure))
    return found


def draw(drawn: list[Figure], config: RunConfig, those: list[Row] | None = None) -> Figure:
    save_curves(Path("curves.png"), rows(config) if those is None else those, config)
    return drawn[-1]


def lines(axis: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): list(map(float, line.get_xdata())) for line in axis.lines}


def note(figure: Figure) -> str:
    return figure.get_supxlabel()


def test_loss_and_accuracy_of_both_splits_are_drawn_from_round_0_on(drawn: list[Figure]) -> None:
    accuracy, loss = draw(drawn, FEDERATED).axes
    rounds = list(range(21))
    assert lines(accuracy) == {"validation": rounds, "test": rounds}
    trained = {"training (sampled clients)": rounds[1:]}
    assert lines(loss) == {**trained, "validation": rounds, "test": rounds}


@pytest.mark.parametrize(
    ("config", "across", "training"),
    [
        (FEDERATED, "round", "training (sampled clients)"),
        (EPOCHS, "epoch", "training"),
        (RunConfig(engine="centralized", local_steps=96), "round of 96 steps", "training"),
    ],
)
def test_labels_are_those_of_the_kind_of_run(
    drawn: list[Figure], config: RunConfig, across: str, training: str
) -> None:
    figure = draw(drawn, config)
    assert [axis.get_xlabel() for axis in figure.axes] == [across, across]
    assert training in lines(figure.axes[1])


@pytest.mark.parametrize("when", ["always", "end", "never"])
def test_a_figure_says_why_it_has_no_curve_of_the_test_set(drawn: list[Figure], when: str) -> None:
    config = EPOCHS.with_values(measure_test=when)
    figure = draw(drawn, config)
    tests = [lines(axis).get("test", []) for axis in figure.axes]
    assert [len(points) for points in tests] == [{"always": 21, "end": 1, "never": 0}[when]] * 2
    assert (f'measure-test = "{when}"' in note(figure)) == (when != "always")
    assert ('"always" draws its curve' in note(figure)) == (when != "always")


def test_a_plateau_is_not_squeezed_into_the_top(drawn: list[Figure]) -> None:
    accuracy, _ = draw(drawn, EPOCHS).axes
    low, high = accuracy.get_ylim()
    assert low > 0.9 and 0.98 < high <= 1.0
    assert [text.get_text() for text in accuracy.texts] == ["lowest: 10.0%, below the axis"]


def test_the_axis_holds_everything_where_the_lines_use_it(drawn: list[Figure]) -> None:
    those = [Row(n, "train", 1.0, n / 25, val_loss=1.0) for n in range(1, 21)]
    accuracy, loss = draw(drawn, FEDERATED, those).axes
    low, high = accuracy.get_ylim()
    assert low <= 1 / 25 and high >= 20 / 25 and not accuracy.texts
    assert loss.get_yscale() == "linear"


def test_single_images_are_no_cliffs(drawn: list[Figure]) -> None:
    those = [Row(n, "train", 1.0, 0.97 + 0.001 * (n % 2), val_loss=1.0) for n in range(1, 21)]
    low, high = draw(drawn, FEDERATED, those).axes[0].get_ylim()
    assert high - low >= 0.0499


def test_losses_of_several_magnitudes_are_on_a_logarithmic_axis(drawn: list[Figure]) -> None:
    _, loss = draw(drawn, EPOCHS).axes  # the training loss falls to 1e-4
    assert loss.get_yscale() == "log"
    low, high = loss.get_ylim()
    assert low < 2 * math.exp(-10) and high > 1


@pytest.mark.parametrize(
    "those",
    [[], [Row(0, "start")], [Row(1, "train", 0.0)], [Row(1, "train", 1.0, 0.1, val_loss=math.nan)]],
)
def test_runs_that_were_stopped_early_or_diverged_are_drawn(
    drawn: list[Figure], those: list[Row]
) -> None:
    draw(drawn, EPOCHS, those).draw_without_rendering()
