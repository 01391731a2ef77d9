"""What a model gets right, by class and by client, beside counting by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.analysis import class_accuracy, client_accuracy, evaluate_run
from fedta_app.analysis.confusion_figure import save_confusion
from fedta_app.data import to_input
from fedta_app.errors import RunError
from fedta_app.finished.reading import Run
from fedta_app.training.workspace import build_workspace
from server_app.app import app as server_app

RUN = {
    "name": "test", "engine": "in-process", "num-clients": 8, "fraction-train": 0.5, "seed": 3,
    "partition": "classes", "num-classes-per-client": 2, "num-server-rounds": 3, "lr": 0.05,
    "local-steps": 2, "eval-every": 1, "eval-size": 120, "threads": 1, "weights": "pretrained",
}  # fmt: skip
COUNTS = arrays(np.int64, st.tuples(st.integers(1, 5), st.just(4)), elements=st.integers(0, 9))
THREE = arrays(np.int64, (3, 4), elements=st.integers(0, 9))


@given(arrays(np.int64, (4, 4), elements=st.integers(0, 9)), COUNTS)
def test_accuracies_are_those_of_counting_images(confusion: Any, counts: Any) -> None:
    by_class = class_accuracy(confusion)
    for true in range(4):
        images = [(true, p) for p in range(4) for _ in range(confusion[true, p])]
        right = [t == p for t, p in images]
        expected = sum(right) / len(right) if right else float("nan")
        assert by_class[true] == pytest.approx(expected, nan_ok=True)
    for client, found in enumerate(client_accuracy(by_class, counts)):
        held = [c for c in range(4) for _ in range(counts[client, c]) if confusion[c].any()]
        expected = sum(by_class[c] for c in held) / len(held) if held else float("nan")
        assert found == pytest.approx(expected, nan_ok=True)


@given(arrays(np.float64, (3, 4), elements=st.floats(0, 1) | st.just(np.nan)), THREE)
def test_models_of_clients_own_are_weighted_by_their_own_labels(accuracy: Any, counts: Any) -> None:
    found = client_accuracy(accuracy, counts)
    for client in range(3):
        right = images = 0.0
        for label in range(4):
            if not np.isnan(accuracy[client, label]):
                right += counts[client, label] * accuracy[client, label]
                images += counts[client, label]
        expected = right / images if images else float("nan")
        assert found[client] == pytest.approx(expected, nan_ok=True)


@given(arrays(np.float64, 4, elements=st.floats(0, 1) | st.just(np.nan)), THREE)
def test_one_model_is_the_same_model_for_every_client(accuracy: Any, counts: Any) -> None:
    each = client_accuracy(np.tile(accuracy, (3, 1)), counts)
    assert np.array_equal(client_accuracy(accuracy, counts), each, equal_nan=True)


@given(arrays(np.int64, (4, 4), elements=st.integers(1, 9)))
def test_a_client_with_the_labels_of_the_test_images_has_the_overall_accuracy(
    confusion: Any,
) -> None:
    overall = confusion.trace() / confusion.sum()
    labels = confusion.sum(axis=1)[None]
    assert client_accuracy(class_accuracy(confusion), labels)[0] == pytest.approx(overall)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    values = {**RUN, "results-dir": str(tmp_path_factory.mktemp("runs"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, stream, **_: None)
        return run_in_process(server_app, client_app, values, 8)


@pytest.mark.parametrize("weights", ["last", "best"])
def test_the_overall_figures_are_those_of_the_run_to_the_bit(run: Run, weights: str) -> None:
    row = run.final if weights == "last" else run.best
    test = evaluate_run(run, weights=weights)
    assert (test.accuracy, test.loss) == (row["test_accuracy"], row["test_loss"])
    validation = evaluate_run(run, weights=weights, split="validation")
    assert validation.accuracy == row["val_accuracy"]
    assert (test.images, validation.images) == (120, 120)


@pytest.mark.draws
def test_every_table_is_that_of_a_loop_over_the_images(run: Run, tmp_path: Path) -> None:
    evaluation = evaluate_run(run)
    model, facts = run.model(), run.kept().facts["model"]
    _, images = build_workspace(run.config).evaluation_sets
    confusion = [[0] * 10 for _ in range(10)]
    with torch.no_grad():
        for image, label in zip(images.images, images.labels, strict=True):
            inputs = to_input(image[None], size=8, mean=facts["mean"], std=facts["std"])
            confusion[int(label)][int(model(inputs).argmax())] += 1
    assert evaluation.confusion.tolist() == confusion
    folder = evaluation.save(tmp_path)
    with (folder / "confusion.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["class", *map(str, range(10))]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == evaluation.confusion.tolist()
    with (folder / "classes.csv").open() as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            right, number_of = confusion[number][number], sum(confusion[number])
            assert (int(row["right"]), int(row["images"])) == (right, number_of)
            assert float(row["accuracy"]) == pytest.approx(right / number_of)
    with (folder / "clients.csv").open() as stream:
        clients = list(csv.DictReader(stream))
    assert [row["client"] for row in clients] == list("01234567")
    assert {row["classes"] for row in clients} == {"2"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"] == run.final["test_accuracy"]
    assert (
        "label shares: exact where clients differ in their labels only"
        in (summary["clients"]["how"])
    )
    assert (folder / "confusion.png").stat().st_size > 1000


def test_another_data_set_than_the_run_had_is_refused(run: Run, tmp_path: Path) -> None:
    other = Run(run.path)
    kept = run.kept()
    kept.facts["data"]["sha256"] = "0" * 64
    other.kept = lambda weights="last": kept  # type: ignore[method-assign]
    with pytest.raises(RunError, match="was trained on another 'digits' than the one in"):
        evaluate_run(other)
    with pytest.raises(RunError, match="split = 'train' is not allowed: split is test or valid"):
        evaluate_run(run, split="train")


@pytest.mark.draws
@pytest.mark.parametrize("classes", [2, 12, 100])
def test_the_figure_is_drawn_for_few_and_for_many_classes(tmp_path: Path, classes: int) -> None:
    confusion = np.random.default_rng(0).poisson(1.0, (classes, classes)) + np.eye(classes) * 9
    confusion[0] = 0  # a class without images
    save_confusion(tmp_path / "figure.png", confusion.astype(np.int64), "title")
    picture = matplotlib.image.imread(tmp_path / "figure.png")
    assert len({tuple(pixel) for pixel in picture[::7, ::7].reshape(-1, picture.shape[2])}) > 5
