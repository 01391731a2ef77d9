"""The accuracy of clients' own models at the end of a run, against a loop over images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save

from client_app.app import app as client_app
from engine.client_memory import forget_run
from engine.inprocess import run_in_process
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.finished.reading import load_run
from fedta_app.runs.blobs import BlobStore
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask
from server_app import phases
from server_app.app import app as server_app

RUN: dict[str, Any] = {
    "name": "test", "strategy": "ditto", "pull": 0.1, "partition": "classes", "num-clients": 10,
    "num-classes-per-client": 2, "fraction-train": 0.3, "num-server-rounds": 2, "lr": 0.05,
    "eval-size": 80, "eval-every": 2, "threads": 1, "engine": "in-process",
}  # fmt: skip
OWN_MASKS = {
    "head": "ridge", "mask-rule": "least-sensitive", "mask-scope": "client", "sparsity": 0.7,
    "calibration-rounds": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, stream, **_: None)


def run(folder: Path, **values: Any) -> dict[str, Any]:
    forget_run()
    run_in_process(server_app, client_app, {**RUN, "results-dir": str(folder), **values}, 10)
    summary: dict[str, Any] = json.loads((folder / "test/seed0/summary.json").read_text())
    return summary


def server_state(folder: Path) -> dict[str, Any]:
    step = sorted((folder / "test/seed0/checkpoint").glob("step-*"))[-1]
    state: dict[str, Any] = json.loads((step / "state.json").read_text())["state"]["parts"]
    return state


def accuracy(space: Workspace, split: int, client: int) -> float | None:
    """Return the mean over the client's own training labels of whether such images are right."""
    images = space.evaluation_sets[split]
    with torch.no_grad():
        logits = space.model.eval()(space.inputs(images.images))
    right = (logits.argmax(1) == images.labels).tolist()
    labels = images.labels.tolist()
    shares = []
    for position in space.partitions[client]:
        own = int(space.data.train.labels[position])
        same = [r for r, label in zip(right, labels, strict=True) if label == own]
        shares += [sum(same) / len(same)] if same else []
    return sum(shares) / len(shares) if shares else None


@pytest.mark.parametrize("setting", [{}, OWN_MASKS], ids=["dense", "own masks"])
def test_it_is_that_of_a_loop_over_clients_and_images(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    found = run(tmp_path, **setting)["personal"]
    parts, folder = server_state(tmp_path), tmp_path / "test/seed0"
    memories = parts["algorithm"]["memories"]
    assert 3 <= len(memories) <= 6 and found["clients"] == len(memories)
    assert (found["unread"], found["diverged"]) == (0, 0)
    assert "exact where clients differ in their labels only" in found["how"]
    config = RunConfig.from_mapping({**RUN, **setting, "results-dir": str(tmp_path)})
    space = build_workspace(config)
    space.built.model.load_state_dict(load_run(folder).model().state_dict())
    end = space.weights.vector.clone()
    for split, name in enumerate(("val", "test")):
        ours, everybodys = [], []
        for client, digest in memories.items():
            space.weights.load(end)
            everybodys.append(accuracy(space, split, int(client)))
            own = load_file(folder / "clients" / client / digest)["personal"]
            if setting:
                bits = (folder / "blobs" / parts["server"]["own-masks"][client]).read_bytes()
                mask = FlatMask.from_bits(bits, end.numel(), torch.device("cpu"))
                assert own.numel() == mask.num_trained < end.numel()
                mask.scatter_(space.weights.vector, own)
            else:
                space.weights.load(own)
            ours.append(accuracy(space, split, int(client)))
        for kind, values in (("own", ours), ("global", everybodys)):
            expected = np.mean([value for value in values if value is not None])
            assert found[kind][f"{name}_accuracy"] == pytest.approx(expected)


def test_models_that_the_server_cannot_read_or_that_diverged_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines of clients' own; and nothing else of the run changes."""
    plain = run(tmp_path / "plain")

    def unreadable(self: BlobStore, digest: str) -> bytes:
        raise RunError("no such file")

    def not_finite(self: BlobStore, digest: str) -> bytes:
        return save({"personal": torch.tensor([float("nan")])})

    figures = phases.personal_figures
    for name, get in (("unread", unreadable), ("diverged", not_finite)):

        def measure(state: Any, memories: Any, get: Any = get) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(BlobStore, "get", get)
                patch.setattr(type(state.memory), "load_head", lambda self, digest: None)
                return figures(state, memories)

        monkeypatch.setattr(phases, "personal_figures", measure)
        other = run(tmp_path / name)
        number = plain["personal"]["clients"]
        expected = {"clients": 0, "unread": 0, "diverged": 0, name: number}
        assert other["personal"] == expected
        assert other["final-weights-sha256"] == plain["final-weights-sha256"]


def test_test_images_stay_unread_and_other_algorithms_say_nothing(tmp_path: Path) -> None:
    found = run(tmp_path / "never", **{"measure-test": "never"})["personal"]
    assert set(found["own"]) == set(found["global"]) == {"val_accuracy"}
    assert "personal" not in run(tmp_path / "plain", strategy="fedavg")
