import csv
from pathlib import Path

import pytest

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.training import evaluation
from server_app.app import app as server_app

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
        measured = [row["test_accuracy"] for row in csv.DictReader(stream) if row["val_accuracy"]]
    assert [bool(value) for value in measured] == [reads == 3, reads == 3, reads > 0]
