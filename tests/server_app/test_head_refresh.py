"""The ridge head that is solved again during training."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.client_memory import bytes_vector
from fedta_app.centralized import run_centralized
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.checkpoint import kept_values, load_checkpoint
from fedta_app.runs.session import RunSession
from fedta_app.training.head_fit import pooled_head
from fedta_app.training.workspace import build_workspace
from tests.server_app.masked import CLIENTS, MASKED, final_weights, rows, run

DENSE = {"mask-rule": "none", "strategy": "fedavg", "num-server-rounds": 3, "lr": 0.02}
SUMS_BYTES = 8 * (64 * 65 // 2 + 10 * 64 + 10)  # of 64 features and 10 classes


def frozen_head(folder: Path) -> torch.Tensor:
    checkpoint = load_checkpoint(folder / "test/seed0/checkpoint")
    assert checkpoint is not None
    digest = checkpoint.state["parts"]["server"]["head"]
    return bytes_vector(BlobStore(folder / "test/seed0/blobs").get(digest)).view(torch.float32)


def solved(weights: torch.Tensor, **values: Any) -> torch.Tensor:
    """Return the head of all training images under these weights, without a federation."""
    workspace = build_workspace(RunConfig.from_mapping({**MASKED, **values}))
    workspace.weights.load(weights)
    return pooled_head(workspace).vector


@pytest.mark.parametrize(
    "values",
    [DENSE, {"num-server-rounds": 3}, {**DENSE, "trained-blocks": 1, "cache-dir": ""}],
    ids=["dense", "masked", "blocks"],
)
def test_it_is_the_head_of_all_images_under_the_final_weights(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    summary = run(tmp_path, **values, **{"head-refresh": 3})
    expected = solved(final_weights(tmp_path), **values)
    torch.testing.assert_close(frozen_head(tmp_path), expected, rtol=1e-4, atol=1e-5)
    start = build_workspace(RunConfig.from_mapping({**MASKED, **values})).weights.vector
    stale = solved(start, **values)
    assert not torch.allclose(frozen_head(tmp_path), stale, rtol=1e-2, atol=1e-2)
    assert summary["head"]["solved"] == 2 and summary["head"]["images"] == 1260


def test_its_traffic_is_counted_where_it_is_due(tmp_path: Path) -> None:
    run(tmp_path / "never", **DENSE)
    run(tmp_path / "second", **DENSE, **{"head-refresh": 2})
    for column, once in (("bytes_up", CLIENTS * SUMS_BYTES), ("bytes_down", CLIENTS * 135_488 * 4)):
        plain, more = (
            [int(row[column]) for row in rows(tmp_path / name, "train")]
            for name in ("never", "second")
        )
        assert more[0] == plain[0]
        assert more[1] - plain[1] >= once
        head = CLIENTS * 3000  # at most, to whom it concerns
        assert more[1] - plain[1] <= once + head


def test_weights_that_diverged_get_no_head(tmp_path: Path) -> None:
    """What is said is that, and not that clients whose features are not finite are missing.

    One step goes so far that whatever machine computes it, the weights are finite and their
    features are not: how a run with a rate that is only too high ends, rounding decides.
    """
    values = {
        **DENSE, "num-server-rounds": 1, "eval-every": 1, "local-steps": 1, "head-refresh": 1,
        "weight-decay": 0.0, "momentum": 0.0,
    }  # fmt: skip
    said = r"training diverged in round 1 \(features of validation images are not finite\)"
    with pytest.raises(RunError, match=said):
        run(tmp_path, **{**values, "strategy": "fedavgm", "server-lr": 1e30})
    alone = {**MASKED, **values, "engine": "centralized", "results-dir": str(tmp_path / "alone")}
    with pytest.raises(RunError, match=said):
        run_centralized(RunConfig.from_mapping({**alone, "lr": 1e30}))


def test_heads_before_the_last_checkpoints_are_forgotten(tmp_path: Path) -> None:
    """A run of many refreshes takes no more room than one of few, and tells its clients no more."""
    run(tmp_path, **{**DENSE, "num-server-rounds": 6, "head-refresh": 1})
    folder = tmp_path / "test/seed0"
    servers = [values["parts"]["server"] for values in kept_values(folder / "checkpoint")]
    assert all(len(told) <= 1 for server in servers for told in server["known"].values())
    heads = {server["head"] for server in servers}
    assert len(heads) == 2
    assert {path.name for path in (folder / "blobs").iterdir()} == heads


def test_sampled_clients_alone_may_solve_it(tmp_path: Path) -> None:
    values = {**DENSE, "head-refresh": 3, "head-refresh-clients": "sampled"}
    summary = run(tmp_path, **values)
    assert summary["head"]["images"] == 3 * 252  # three of five clients


PARTS = ("unbroken", "parts")


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**DENSE, "head-refresh": 1}
    unbroken = run(tmp_path / "unbroken", **values)
    add = RunSession.add

    class Died(Exception):
        pass

    def add_and_die(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        raise Died

    monkeypatch.setattr(RunSession, "add", add_and_die)
    for _ in range(6):  # two rounds of the head, the start, three of training
        with pytest.raises(Died):
            run(tmp_path / "parts", **values)
    monkeypatch.undo()
    resumed = run(tmp_path / "parts", **values)
    assert resumed["final-weights-sha256"] == unbroken["final-weights-sha256"]
    assert resumed["bytes-up"] == unbroken["bytes-up"]
    blobs = [{path.name for path in (tmp_path / part).rglob("blobs/*")} for part in PARTS]
    assert blobs[0] == blobs[1]


def test_the_centralised_baseline_solves_it_again_too(tmp_path: Path) -> None:
    values = {**MASKED, **DENSE, "engine": "centralized", "head-refresh": 3}
    run_centralized(RunConfig.from_mapping({**values, "results-dir": str(tmp_path)}))
    checkpoint = load_checkpoint(tmp_path / "test/seed0/checkpoint")
    assert checkpoint is not None
    baseline = checkpoint.state["parts"]["baseline"]
    expected = solved(baseline["weights"], **values)
    torch.testing.assert_close(baseline["head"], expected, rtol=1e-4, atol=1e-5)
