import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.training import evaluation
from fedta_app.training.evaluation import highest_by_chance
from fedta_app.training.workspace import build_workspace
from server_app.app import app as server_app
from tests.ties import right

QUICK = {"num-clients": 10, "num-server-rounds": 4, "eval-every": 2, "local-steps": 1, "threads": 1}


@pytest.mark.parametrize("engine", ["in-process", "centralized"])
@pytest.mark.parametrize(("when", "reads"), [("always", 3), ("end", 1), ("never", 0)])
def test_test_images_are_read_as_often_as_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, when: str, reads: int
) -> None:
    sizes = []
    evaluate = evaluation.evaluate

    def counting(workspace, images):  # type: ignore[no-untyped-def]
        sizes.append(len(images))
        return evaluate(workspace, images)

    monkeypatch.setattr(evaluation, "evaluate", counting)
    values = {**QUICK, "measure-test": when, "engine": engine, "results-dir": str(tmp_path)}
    config = RunConfig.from_mapping({**values, "name": "test"})
    if engine == "centralized":
        run_centralized(config)
    else:
        run_in_process(server_app, client_app, config.to_mapping(), 10)
    assert sizes.count(397) == reads  # of the digits' test split; 140 images are for validation
    assert sizes.count(140) == 3
    with (tmp_path / "test/seed0/metrics.csv").open() as stream:
        measured = [row for row in csv.DictReader(stream) if row["val_accuracy"]]
    assert all(row["val_loss"] for row in measured) and len(measured) == 3
    for column in ("test_accuracy", "test_loss"):
        assert [bool(row[column]) for row in measured] == [reads == 3, reads == 3, reads > 0]


def test_the_losses_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    config = RunConfig.from_mapping({**QUICK, "eval-batch-size": 64, "weights": "random"})
    workspace = build_workspace(config)
    found = evaluation.measure(workspace, workspace.weights.vector.clone())
    for split, images in zip(("val", "test"), workspace.evaluation_sets, strict=True):
        losses, all_logits = [], []
        with torch.no_grad():
            for image, label in zip(images.images, images.labels, strict=True):
                (logits,) = workspace.model(workspace.inputs(image[None]))
                losses.append(float(logits.logsumexp(0) - logits[label]))
                all_logits.append(logits)
        assert found[f"{split}_loss"] == pytest.approx(sum(losses) / len(images), rel=1e-5)  # type: ignore[literal-required]
        fewest, most = right(torch.stack(all_logits), images.labels).sum(1).tolist()
        number = round(found[f"{split}_accuracy"] * len(images), 9)  # type: ignore[literal-required]
        assert fewest <= number <= most < fewest + 2


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
@pytest.mark.parametrize("images", [4, 20, 100, 1000])
def test_guesses_are_told_from_knowledge_or_nothing_is_said(classes: int, images: int) -> None:
    highest = highest_by_chance(classes, images)
    if highest is None:
        assert images < 150 or images < classes
        return
    guesses = np.random.default_rng(0).binomial(images, 1 / classes, 20_000) / images
    assert np.mean(guesses > highest) < 0.025
    # Half of the way from a guess to certainty is never called a guess.
    assert highest < (1 + 1 / classes) / 2


def test_few_classes_and_images_are_not_called_chance() -> None:
    for classes, images in ((2, 4), (2, 20), (3, 9), (5, 9)):
        assert highest_by_chance(classes, images) is None
