"""Masks that contrast a client's sensitivities with those of all others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.masks import calibrate_mask
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.checkpoint import load_checkpoint
from fedta_app.runs.session import RunSession
from fedta_app.training.head_fit import pooled_head
from fedta_app.training.scoring import client_batches, scores
from fedta_app.training.workspace import build_workspace
from fedta_app.vectors import FlatMask
from tests.server_app.masked import BACKBONE, MASKED, rows, run

CONTRAST: dict[str, Any] = {
    "mask-rule": "contrast",
    "mask-scope": "client",
    "calibration-rounds": 1,
    "num-clients": 10,
    "fraction-train": 0.5,
}
CLIENTS = 10


def own_masks(folder: Path) -> dict[int, torch.Tensor]:
    """Return the masks that a run keeps, by partition id."""
    store = BlobStore(folder / "test/seed0/blobs")
    checkpoint = load_checkpoint(folder / "test/seed0/checkpoint")
    assert checkpoint is not None
    kept = checkpoint.state["parts"]["server"]["own-masks"]
    return {
        int(client): FlatMask.from_bits(store.get(digest), BACKBONE, torch.device("cpu")).mask
        for client, digest in kept.items()
    }


def test_each_client_trains_what_is_sensitive_to_its_data_only(tmp_path: Path) -> None:
    """A loop over all pairs of clients, in float64, finds the same masks."""
    run(tmp_path, **CONTRAST)
    found = own_masks(tmp_path)
    space = build_workspace(RunConfig.from_mapping({**MASKED, **CONTRAST}))
    assert space.head is not None
    space.head.load(pooled_head(space, at_start=True).vector)
    each = [scores(space, client_batches(space, k), None, 1).double() for k in range(CLIENTS)]
    for client in range(CLIENTS):
        others = torch.zeros(BACKBONE, dtype=torch.float64)
        for other in range(CLIENTS):
            if other != client:
                others += each[other]
        ratio = torch.where(each[client] > 0, each[client] / others, 0.0)
        assert int(found[client].sum()) == round(0.1 * BACKBONE)
        # The sum goes to clients as float32: rounding may swap weights at the edge of the mask.
        edge = ratio[found[client]].min()
        assert int((ratio[~found[client]] > edge * (1 + 1e-4)).sum()) == 0


def test_the_bytes_are_scores_up_and_their_sum_down(tmp_path: Path) -> None:
    run(tmp_path, **CONTRAST)
    calibration = rows(tmp_path, "calibrate")
    assert len(calibration) == 1 + 2  # the sum, and masks from two groups of five clients
    assert int(calibration[0]["bytes_up"]) == CLIENTS * 4 * BACKBONE
    down = sum(int(row["bytes_down"]) for row in calibration)
    assert down >= CLIENTS * 4 * BACKBONE
    assert sum(int(row["bytes_up"]) for row in calibration[1:]) < CLIENTS * BACKBONE


def test_it_goes_on_between_the_sum_and_the_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(tmp_path / "unbroken", **CONTRAST)
    add = RunSession.add

    class Died(Exception):
        pass

    def after(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        if [row.phase for row in self.rows].count("calibrate") == 1:
            raise Died

    monkeypatch.setattr(RunSession, "add", after)
    with pytest.raises(Died):
        run(tmp_path / "parts", **CONTRAST)
    monkeypatch.undo()
    resumed = run(tmp_path / "parts", **CONTRAST)
    assert resumed["final-weights-sha256"] == unbroken["final-weights-sha256"]


def test_a_client_that_sends_no_scores_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import client_app.app as client

    original, asked = client.scores, iter(range(CLIENTS))

    def one_fails(*arguments: Any, **named: Any) -> torch.Tensor:
        if next(asked) == 3:
            raise ArithmeticError("too large")
        return original(*arguments, **named)

    monkeypatch.setattr("client_app.app.scores", one_fails)
    with pytest.raises(
        RunError, match=r"the scores of every client, .* client 3 failed .ArithmeticError"
    ):
        run(tmp_path, **CONTRAST)


@pytest.mark.parametrize("answers", [0, 1])
def test_a_client_without_others_ends_it(
    answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores over nothing would all be infinite, and the first weights would be trained."""
    import client_app.app as client

    original, asked = client.scores, iter(range(CLIENTS))

    def one_answers(*arguments: Any, **named: Any) -> torch.Tensor:
        if next(asked) >= answers:
            raise ArithmeticError("too large")
        return original(*arguments, **named)

    monkeypatch.setattr("client_app.app.scores", one_answers)
    with pytest.raises(RunError, match="fewer than two clients sent scores"):
        run(tmp_path, **CONTRAST, **{"missing-clients": "go-on"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mask-scope": "global"}, "takes mask-scope = 'client' in a federation"),
        ({"engine": "centralized"}, "takes mask-scope = 'client' in a federation"),
        ({"calibration-rounds": 4}, "calibration-rounds is 1"),
        ({"num-clients": 1, "fraction-train": 1.0}, "num-clients is at least 2 there"),
    ],
)
def test_what_does_not_fit_it_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_mapping({**MASKED, **CONTRAST, **values})


def test_one_data_set_has_no_others() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield torch.randn(2, 4), torch.zeros(2, dtype=torch.long)

    with pytest.raises(ValueError, match="compares a client with others"):
        calibrate_mask(model, batches(), rule="contrast", sparsity=0.5, num_rounds=1)
