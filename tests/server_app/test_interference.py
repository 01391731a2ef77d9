"""Interference in a run: what is written, and that measuring changes nothing."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.config import RunConfig
from fedta_app.runs.session import RunSession
from fedta_app.seeding import torch_generator
from fedta_app.training.client import train_client
from fedta_app.training.steps import evaluate
from fedta_app.training.workspace import build_workspace
from tests.server_app.failing import fail_for
from tests.server_app.masked import MASKED, run

DENSE = {
    "mask-rule": "none", "strategy": "fedavg", "num-server-rounds": 3, "interference-every": 2,
    "weights": "random", "head": "random",
}  # fmt: skip


def lines(folder: Path, name: str = "interference.csv") -> list[dict[str, str]]:
    with (folder / "test/seed0" / name).open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("values", [DENSE, {"num-server-rounds": 3, "interference-every": 2}])
def test_measuring_changes_no_bit_of_the_run(tmp_path: Path, values: dict[str, Any]) -> None:
    plain = run(tmp_path / "plain", **{**values, "interference-every": 0})
    measured = run(tmp_path / "measured", **values)
    assert measured["final-weights-sha256"] == plain["final-weights-sha256"]
    assert not (tmp_path / "plain/test/seed0/interference.csv").exists()
    rows = lines(tmp_path / "measured")
    assert [int(row["round"]) for row in rows] == [1, 3]
    assert all(float(row["lr"]) == 0.05 and int(row["clients"]) == 3 for row in rows)
    assert all(float(row["own"]) < float(row["others"]) for row in rows)
    has_ridge = values is not DENSE
    assert all((row["fresh_head_accuracy"] != "") == has_ridge for row in rows)


def test_a_head_that_is_solved_after_the_round_changes_no_loss_before_it(tmp_path: Path) -> None:
    values = {"mask-rule": "none", "strategy": "fedavg", "interference-every": 2}
    run(tmp_path / "kept", **values)
    run(tmp_path / "solved", **values, **{"head-refresh": 1})
    kept, solved = (lines(tmp_path / name)[0] for name in ("kept", "solved"))
    for column in ("own", "others", "harmed", "norm"):
        assert solved[column] == kept[column]
    assert solved["head_accuracy"] == solved["fresh_head_accuracy"]  # that of now


def test_a_round_in_which_one_client_was_left_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[tuple[int, ...]] = []

    def all_but_one(key: tuple[int, ...]) -> bool:
        answered.append(key)
        return key[0] == 1 and len(answered) > 1

    fail_for(monkeypatch, all_but_one)
    run(tmp_path, **DENSE)
    assert [row["round"] for row in lines(tmp_path)] == ["3"]


def test_the_matrix_is_of_the_clients_own_updates_and_images(tmp_path: Path) -> None:
    run(tmp_path, **DENSE)
    rows = lines(tmp_path, "interference-0001.csv")
    clients = [int(row["vector of"]) for row in rows]
    here = build_workspace(RunConfig.from_mapping({**MASKED, **DENSE}))
    start = here.weights.vector.clone()
    for row in rows[:2]:
        trained = train_client(
            here, start, partition_id=int(row["vector of"]), server_round=1, lr=0.05
        )
        update = trained.update.clone()
        for other in clients:
            images = here.client_data(other)
            drawn = torch.randperm(len(images), generator=torch_generator(0, "interference", other))
            part = images.subset(drawn[:100])
            losses = []
            for weights in (start, start + update):
                here.weights.load(weights)
                losses.append(evaluate(here, part)[0])
            expected = losses[1] - losses[0]
            assert float(row[f"loss of {other}"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_resumed_run_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(Exception):
        pass

    add = RunSession.add

    def add_and_die(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        raise Died

    run(tmp_path / "unbroken", **DENSE)
    monkeypatch.setattr(RunSession, "add", add_and_die)
    for _ in range(4):
        with pytest.raises(Died):
            run(tmp_path / "parts", **DENSE)
    monkeypatch.undo()
    run(tmp_path / "parts", **DENSE)
    assert lines(tmp_path / "parts") == lines(tmp_path / "unbroken")
