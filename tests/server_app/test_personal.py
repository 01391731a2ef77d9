"""The accuracy of clients' own models at the end of a run, against a loop over images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save
from torch.nn.functional import cross_entropy

from engine.client_memory import ClientMemory
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.finished.reading import load_run
from fedta_app.models.building import features
from fedta_app.runs.blobs import BlobStore
from fedta_app.training.head_fit import (
    PersonalHeads,
    head_images,
    head_statistics,
    pooled_head,
)
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask
from server_app import phases
from strategies.exchange import Exchange
from tests.runs import summary_of
from tests.ties import right

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
    return summary_of(folder, {**RUN, **values})


def server_state(folder: Path) -> dict[str, Any]:
    step = sorted((folder / "test/seed0/checkpoint").glob("step-*"))[-1]
    state: dict[str, Any] = json.loads((step / "state.json").read_text())["state"]["parts"]
    return state


def accuracy(space: Workspace, split: int, client: int) -> np.ndarray | None:
    """Return the mean over the client's own training labels of whether such images are right.

    Two values: with ties of two classes against it, and in its favour.
    """
    images = space.evaluation_sets[split]
    with torch.no_grad():
        logits = space.model.eval()(space.inputs(images.images))
    # The solvers of heads differ by more than a batch size does.
    rights = right(logits, images.labels, tie=1e-3).double().numpy()
    labels = images.labels.numpy()
    own = space.data.train.labels[space.partitions[client]].tolist()
    shares = [rights[:, labels == label].mean(axis=1) for label in own if label in labels]
    return np.mean(shares, axis=0) if shares else None


def check(found: float, expected: list[np.ndarray | None], images: int = 80) -> None:
    """Compare with the mean over clients; so few are ties that a client's image counts."""
    low, high = np.mean([value for value in expected if value is not None], axis=0)
    assert low - 1e-6 <= found <= high + 1e-6 and high - low < 1 / images


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
            check(found[kind][f"{name}_accuracy"], values)


def test_models_that_the_server_cannot_read_or_that_diverged_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on machines of clients' own; and nothing else of the run changes."""
    monkeypatch.setattr(Exchange, "one_machine", False)
    plain = run(tmp_path / "plain")

    def unreadable(self: BlobStore, digest: str, *more: object) -> memoryview:
        raise RunError("no such file")

    def not_finite(self: BlobStore, digest: str, *more: object) -> memoryview:
        return memoryview(bytearray(save({"personal": torch.tensor([float("nan")])})))

    figures = phases.personal_figures
    for name, get in (("unread", unreadable), ("diverged", not_finite)):

        def measure(*arguments: Any, get: Any = get) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(BlobStore, "get", get)
                patch.setattr(ClientMemory, "load_head", lambda self, digest: None)
                return figures(*arguments)

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


def test_per_fedavgs_is_that_after_a_step_on_each_clients_images(tmp_path: Path) -> None:
    """For all clients, with the gradient by autograd over all images of one at a time."""
    values: dict[str, Any] = {"strategy": "per-fedavg", "personal-lr": 0.05}
    found = run(tmp_path / "ours", **values)["personal"]
    assert found["clients"] == 10 and (found["unread"], found["diverged"]) == (0, 0)
    config = RunConfig.from_mapping({**RUN, **values, "results-dir": str(tmp_path / "ours")})
    space = build_workspace(config)
    space.built.model.load_state_dict(load_run(tmp_path / "ours/test/seed0").model().state_dict())
    end, ours = space.weights.vector.clone(), []
    for client in range(10):
        space.weights.load(end)
        parameters = list(space.model.parameters())
        images = space.data.train.subset(space.client_positions(client))
        loss = cross_entropy(space.model(space.inputs(images.images)), images.labels)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.05 * gradient
        ours.append(accuracy(space, 1, client))
    check(found["own"]["test_accuracy"], ours)
    assert found["own"]["test_accuracy"] > found["global"]["test_accuracy"]
    neutral = run(tmp_path / "neutral", **{**values, "personal-lr": 0.0})
    plain = run(tmp_path / "plain", strategy="fedavg")
    assert neutral["final-weights-sha256"] == plain["final-weights-sha256"]
    assert "personal" not in neutral


def test_ridge_heads_of_clients_own_are_those_of_weighted_least_squares(tmp_path: Path) -> None:
    """In NumPy over all images, where a client's own count 1 + s and all others s."""
    values: dict[str, Any] = {"strategy": "fedavg", "head": "ridge", "ridge": 0.01, "lr": 0.002}
    share = 0.02
    found = run(tmp_path / "ours", **values, **{"personal-ridge": share})
    plain = run(tmp_path / "plain", **values)
    assert found["final-weights-sha256"] == plain["final-weights-sha256"]
    assert "personal" not in plain and found["personal"]["clients"] == 10
    assert found["bytes-down"] == plain["bytes-down"]
    space = build_workspace(
        RunConfig.from_mapping({**RUN, **values, "results-dir": str(tmp_path / "ours")})
    )
    models = [load_run(tmp_path / name / "test/seed0").model() for name in ("ours", "plain")]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    space.built.model.load_state_dict(states[1])
    assert space.head is not None
    images, frozen, ours, everybodys = space.data.train, space.head.vector.clone(), [], []
    with torch.no_grad():
        found_features = features(space.model.eval(), space.inputs(images.images))
    x, targets = found_features.double().numpy(), np.eye(10)[images.labels.numpy()]
    for client in range(10):
        space.head.load(frozen)
        everybodys.append(accuracy(space, 1, client))
        weights = np.full(len(x), share)
        weights[space.partitions[client]] += 1
        means = [np.average(part, axis=0, weights=weights) for part in (x, targets)]
        centred, wanted = x - means[0], targets - means[1]
        gram = centred.T @ (weights[:, None] * centred)
        ridge = 0.01 * np.trace(gram) / len(gram)
        solution = np.linalg.solve(
            gram + ridge * np.eye(len(gram)), centred.T @ (weights[:, None] * wanted)
        )
        head = np.concatenate([solution.T.ravel(), means[1] - means[0] @ solution])
        space.head.load(torch.from_numpy(head).float())
        ours.append(accuracy(space, 1, client))
    for kind, numbers in (("own", ours), ("global", everybodys)):
        check(found["personal"][kind]["test_accuracy"], numbers)
    assert found["personal"]["own"] != found["personal"]["global"]


def test_with_a_large_share_a_clients_head_is_that_of_all_and_with_a_small_one_its_own(
    tmp_path: Path,
) -> None:
    values = {**RUN, "strategy": "fedavg", "head": "ridge", "ridge": 0.01}
    space = build_workspace(RunConfig.from_mapping({**values, "results-dir": str(tmp_path)}))
    assert space.head is not None
    total = pooled_head(space)
    own = head_statistics(space, head_images(space, space.client_positions(3)))
    weight, bias = own.solve(0.01 * own.scale())
    alone = torch.cat([weight.flatten(), bias]).float() / total.temperature
    for share, expected in ((1e9, total.vector), (1e-12, alone)):
        PersonalHeads(space, share).load(3)
        torch.testing.assert_close(space.head.vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"strategy": "fedavg"}, "head = 'random': head is ridge there"),
        ({"head": "ridge"}, "strategy = 'ditto': by it clients have models of their own"),
        ({"strategy": "fedavg", "head": "ridge", "personal-layers": "norm"}, "one of the two"),
    ],
)
def test_ridge_heads_of_clients_own_are_refused_where_they_mean_nothing(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.from_mapping({**RUN, **values, "personal-ridge": 0.1})
