"""Runs whose local steps or batch sizes adapt: against loops, and after a stop."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.finished.reading import load_run
from fedta_app.pace import AdaComm, NoiseScale
from fedta_app.runs.directory import run_path
from fedta_app.runs.session import RunSession
from fedta_app.training.client import train_client
from fedta_app.training.workspace import Workspace, build_workspace
from tests.runs import summary_of

RUN: dict[str, Any] = {
    "name": "test", "partition": "iid", "num-clients": 5, "fraction-train": 1.0,
    "num-server-rounds": 5, "local-steps": 6, "batch-size": 4, "lr": 0.1, "momentum": 0.0,
    "augment": False, "weights": "random", "eval-size": 20, "eval-every": 5, "threads": 1,
    "checkpoint-every": 1, "engine": "in-process",
}  # fmt: skip
ADACOMM = {"adacomm-rounds": 1}
NOISE_SCALE = {"noise-scale-rounds": 1, "local-steps": 1, "lr-batch-size": 8}


def run(folder: Path, **values: Any) -> dict[str, Any]:
    return summary_of(folder, {**RUN, **values})


def workspace_of(folder: Path, **values: Any) -> Workspace:
    return build_workspace(
        RunConfig.from_mapping({**RUN, "results-dir": str(folder / "loop"), **values})
    )


def assert_weights(space: Workspace, expected: torch.Tensor, folder: Path, **values: Any) -> None:
    config = RunConfig.from_mapping({**RUN, "results-dir": str(folder), **values})
    state = load_run(run_path(config)).model().state_dict()
    found = torch.cat([state[name].flatten() for name in space.weights.names])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_adacomm_takes_the_steps_of_a_loop(tmp_path: Path) -> None:
    space, rule = workspace_of(tmp_path, **ADACOMM), AdaComm(6, every=1, factor=0.5)
    weights, adapted = space.weights.vector.clone(), []
    for server_round in range(1, 6):
        steps, total, loss = rule.steps, torch.zeros_like(weights), 0.0
        for client in range(5):
            result = train_client(
                space, weights, partition_id=client, server_round=server_round, lr=0.1,
                local_steps=steps,
            )  # fmt: skip
            total += result.num_examples * result.update
            loss += result.num_examples * result.loss
        weights = weights + total / len(space.data.train)
        rule.observe(loss / len(space.data.train))
        if rule.steps != steps:
            adapted.append({"round": server_round + 1, "local-steps": rule.steps})
    assert run(tmp_path, **ADACOMM)["adapted"] == adapted
    assert len(adapted) > 1
    assert_weights(space, weights, tmp_path, **ADACOMM)


def test_the_noise_scale_sets_the_batches_of_a_loop(tmp_path: Path) -> None:
    """And the learning rate with them, in proportion to lr-batch-size."""
    space = workspace_of(tmp_path, **NOISE_SCALE)
    sizes = [len(part) for part in space.partitions]
    rule = NoiseScale(4, every=1, sizes=sizes)
    weights, adapted = space.weights.vector.clone(), []
    for server_round in range(1, 6):
        size, total = rule.batch_size, torch.zeros_like(weights)
        for client in range(5):
            result = train_client(
                space, weights, partition_id=client, server_round=server_round,
                lr=0.1 * size / 8, batch_size=size,
            )  # fmt: skip
            total += result.num_examples * result.update
            rule.watch(client, result.update, None)
        weights = weights + total / len(space.data.train)
        rule.end_round(0.1 * size / 8)
        if rule.batch_size != size:
            adapted.append({"round": server_round + 1, "batch-size": rule.batch_size})
    assert run(tmp_path, **NOISE_SCALE)["adapted"] == adapted
    assert len(adapted) > 1
    assert_weights(space, weights, tmp_path, **NOISE_SCALE)


def test_a_round_is_measured_at_its_own_rate(tmp_path: Path) -> None:
    """And not at that of the next round, which its updates have set."""
    summary = run(tmp_path, **NOISE_SCALE, **{"interference-every": 1})
    sizes = {entry["round"]: entry["batch-size"] for entry in summary["adapted"]}
    assert len(sizes) > 1
    size, expected = 4, []
    for server_round in range(1, 6):
        size = sizes.get(server_round, size)
        expected.append(0.1 * size / 8)
    with (tmp_path / "test/seed0/interference.csv").open() as stream:
        found = [float(row["lr"]) for row in csv.DictReader(stream)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("values", [ADACOMM, NOISE_SCALE], ids=["adacomm", "noise-scale"])
def test_a_run_that_stops_goes_on_at_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    whole = run(tmp_path / "whole", **values)
    with monkeypatch.context() as patched:
        patched.setattr(
            RunSession, "stop_reason", lambda self: "enough" if len(self.rows) == 4 else ""
        )
        assert run(tmp_path / "parts", **values)["status"] == "stopped"
    resumed = run(tmp_path / "parts", **values)
    assert resumed["final-weights-sha256"] == whole["final-weights-sha256"]
    assert resumed["adapted"] == whole["adapted"]


def test_factor_1_and_a_late_turn_are_fedavg_on_bits(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    late = run(tmp_path / "late", **{"adacomm-rounds": 6})
    assert late["final-weights-sha256"] == plain["final-weights-sha256"]
    one = {"local-steps": 1}
    plain = run(tmp_path / "one", **one)
    late = run(tmp_path / "never", **one, **{"noise-scale-rounds": 6})
    assert late["final-weights-sha256"] == plain["final-weights-sha256"]
    steps_of_one = run(tmp_path / "steps", **one, **ADACOMM)
    assert steps_of_one["final-weights-sha256"] == plain["final-weights-sha256"]
    with (tmp_path / "one/test/seed0/metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 6


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"adacomm-rounds": 1, "local-steps": 0}, "local-steps is at least 1"),
        ({"adacomm-rounds": 1, "local-steps-from": 2}, "one of the two is 0"),
        ({"noise-scale-rounds": 1}, "local-steps = 6: local-steps is 1, so that"),
        ({**NOISE_SCALE, "clip-norm": 1.0}, "clip-norm = 1.0: clip-norm is 0, because"),
        ({**NOISE_SCALE, "superclient-clients": 2}, "superclient-clients is 0 or 1"),
        (
            {**NOISE_SCALE, "dp-noise": 1.0, "update-bound": 1.0, "dp-delta": 1e-5},
            "dp-noise is 0, because",
        ),
        (
            {**NOISE_SCALE, "head": "ridge", "mask-rule": "random", "mask-scope": "client"},
            "mask-scope = 'client': mask-scope is another",
        ),
        ({**NOISE_SCALE, "strategy": "scaffold"}, "strategy = 'scaffold': what clients keep"),
        ({**NOISE_SCALE, "strategy": "feddyn"}, "strategy = 'feddyn': what clients keep"),
        ({**NOISE_SCALE, "num-clients": 5, "fraction-train": 0.2}, "a round asks 1 of them, and"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.from_mapping({**RUN, **values})
    RunConfig.from_mapping({**RUN, **values, "engine": "centralized", "num-clients": 5})


def test_a_batch_size_of_the_round_is_that_of_the_key(tmp_path: Path) -> None:
    updates = []
    for key, told in ((4, 7), (7, None), (4, None)):
        space = workspace_of(tmp_path, **{"batch-size": key})
        result = train_client(
            space, space.weights.vector.clone(), partition_id=1, server_round=1, lr=0.1,
            batch_size=told,
        )  # fmt: skip
        updates.append(result.update.clone())
    assert torch.equal(updates[0], updates[1])
    assert not torch.equal(updates[0], updates[2])
