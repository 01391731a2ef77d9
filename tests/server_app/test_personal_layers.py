"""Personal layers in the trainer, against plain loops, and in runs: what travels, what stays."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedta_app.algorithms import make_algorithm
from fedta_app.config import RunConfig
from fedta_app.errors import RunError
from fedta_app.models.personal_layers import PersonalLayers
from fedta_app.runs.session import RunSession
from fedta_app.seeding import torch_generator
from fedta_app.training.client import LAYERS, train_client
from fedta_app.training.steps import mini_batches
from fedta_app.training.workspace import Workspace, build_workspace
from fedta_app.vectors import FlatMask
from tests.runs import summary_of
from tests.server_app.test_personal import accuracy

K = 10
RUN: dict[str, Any] = {
    "name": "test", "partition": "classes", "num-clients": K, "num-classes-per-client": 2,
    "fraction-train": 0.3, "num-server-rounds": 3, "local-steps": 3, "batch-size": 8, "lr": 0.05,
    "momentum": 0.5, "weight-decay": 0.01, "eval-every": 3, "eval-size": 80, "threads": 1,
    "engine": "in-process", "personal-layers": "head",
}  # fmt: skip
MASKED = {"head": "ridge", "mask-rule": "random", "sparsity": 0.7, "personal-layers": "norm"}
OWN_MASKS = {**MASKED, "mask-scope": "client"}


def workspace(folder: Path, **values: Any) -> Workspace:
    config = {**RUN, "augment": False, "results-dir": str(folder), **values}
    return build_workspace(RunConfig.from_mapping(config))


# --- the trainer


def plain_loop(
    space: Workspace, trained: Tensor, anchored: Tensor, mu: float, steps: int, *more: str
) -> None:
    """Train in place the entries of a mask (N,) on client 2, with a penalty on some of them."""
    images, start = space.client_data(2), space.weights.vector.clone()
    optimizer = torch.optim.SGD(space.model.parameters(), lr=0.05, momentum=0.5, weight_decay=0.01)
    where = space.weights.views(anchored.float())
    centres = space.weights.views(start)
    for positions in mini_batches(
        len(images), 8, steps, torch_generator(0, "batches", 7, 2, *more)
    ):
        optimizer.zero_grad()
        logits = space.model(space.inputs(images.images[positions]))
        loss = cross_entropy(logits, images.labels[positions])
        for name, value in space.model.named_parameters():
            loss = loss + mu / 2 * (where[name] * (value - centres[name]) ** 2).sum()
        loss.backward()
        optimizer.step()
        space.weights.load(torch.where(trained, space.weights.vector, start))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("steps", [0, 2], ids=["together", "personal first"])
def test_the_trainer_does_what_a_plain_loop_does(tmp_path: Path, masked: bool, steps: int) -> None:
    """With FedProx's pull, which holds what travels, and layers that the client had before."""
    values = {"personal-steps": steps, "personal-layers": "head,blocks.1.*"}
    space, plain = workspace(tmp_path, **values), workspace(tmp_path, **values)
    assert space.layers is not None
    x, size = space.weights.vector.clone(), space.weights.vector.numel()
    draw = torch.Generator().manual_seed(1)
    down = FlatMask(torch.rand(size, generator=draw) < 0.3) if masked else None
    travelling, own = space.layers.split(down)
    sent = travelling.gather(x) + 0.01 * torch.randn(travelling.num_trained, generator=draw)
    layers = own.gather(x) + 0.01 * torch.randn(own.num_trained, generator=draw)
    travelling.scatter_(plain.weights.vector, sent)
    own.scatter_(plain.weights.vector, layers)
    start = plain.weights.vector.clone()
    if steps:
        plain_loop(plain, own.mask, travelling.mask, 0.0, steps, "layers")
        plain_loop(plain, travelling.mask, travelling.mask, 0.7, 3)
    else:
        plain_loop(plain, travelling.mask | own.mask, travelling.mask, 0.7, 3)
    found = train_client(
        space, sent, partition_id=2, server_round=7, lr=0.05, down=down,
        algorithm=make_algorithm("fedprox", {"pull": 0.7}), memory={LAYERS: layers},
    )  # fmt: skip
    end, compare = plain.weights.vector, {"rtol": 1e-3, "atol": 2e-6}
    torch.testing.assert_close(found.update, travelling.gather(end - start), **compare)
    torch.testing.assert_close(found.memory[LAYERS], own.gather(end), **compare)
    assert not torch.equal(found.memory[LAYERS], layers)
    frozen = ~(travelling.mask | own.mask)
    assert torch.equal(space.weights.vector[frozen], x[frozen])


def test_no_personal_layer_is_fedavg_bit_for_bit_on_the_other_path(tmp_path: Path) -> None:
    plain = workspace(tmp_path, **{"personal-layers": "none"})
    none = replace(plain, layers=PersonalLayers(frozenset(), plain.weights))
    x, common = plain.weights.vector.clone(), {"partition_id": 2, "server_round": 1, "lr": 0.05}
    expected = train_client(plain, x, **common).update.clone()
    found = train_client(none, x, **common)
    assert torch.equal(found.update, expected) and found.memory[LAYERS].numel() == 0


def test_all_layers_personal_is_local_training_alone_bit_for_bit(tmp_path: Path) -> None:
    plain = workspace(tmp_path, **{"personal-layers": "none"})
    alone = workspace(tmp_path, **{"personal-layers": "none"})
    everything = replace(
        plain, layers=PersonalLayers(frozenset(plain.weights.names), plain.weights)
    )
    memory: Any = {}
    for number in (1, 2, 5):
        common: dict[str, Any] = {"partition_id": 2, "server_round": number, "lr": 0.05}
        start = alone.weights.vector.clone()
        train_client(alone, start, **common, outbox=torch.empty_like)  # the model stays as it is
        train_client(everything, torch.empty(0), **{**common, "partition_id": 4})  # between
        found = train_client(everything, torch.empty(0), **common, memory=memory)
        memory = {LAYERS: found.memory[LAYERS].clone()}
        assert found.update.numel() == 0
        assert torch.equal(memory[LAYERS], alone.weights.vector)


def test_the_layers_of_the_client_before_leave_nothing_behind(tmp_path: Path) -> None:
    space, fresh = workspace(tmp_path), workspace(tmp_path)
    assert space.layers is not None
    sent = space.layers.split(None).travelling.gather(space.weights.vector)
    common: dict[str, Any] = {"server_round": 1, "lr": 0.05}
    train_client(space, sent, partition_id=2, **common)
    after = train_client(space, sent, partition_id=4, **common)
    expected = train_client(fresh, sent, partition_id=4, **common)
    assert torch.equal(after.update, expected.update)
    assert torch.equal(after.memory[LAYERS], expected.memory[LAYERS])


# --- runs


def run(folder: Path, **values: Any) -> dict[str, Any]:
    return summary_of(folder, {**RUN, **values})


def parts(folder: Path) -> tuple[dict[str, Any], Tensor]:
    """Return the parts of the last checkpoint, and the weights in it."""
    step = sorted((folder / "test/seed0/checkpoint").glob("step-*"))[-1]
    state: dict[str, Any] = json.loads((step / "state.json").read_text())["state"]["parts"]
    return state, load_file(step / "weights.safetensors")["parts/server/weights"]


def mask_of(folder: Path, digest: str, size: int) -> FlatMask | None:
    bits = (folder / "test/seed0/blobs" / digest).read_bytes() if digest else b""
    return FlatMask.from_bits(bits, size, torch.device("cpu")) if digest else None


@pytest.mark.parametrize("setting", [{}, MASKED, OWN_MASKS], ids=["dense", "masked", "own masks"])
def test_what_travels_what_stays_and_how_good_clients_own_models_are(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    """Bytes are of what travels; accuracies are those of a loop over clients and images."""
    found, plain = run(tmp_path / "ours", **setting), workspace(tmp_path, **setting)
    state, end = parts(tmp_path / "ours")
    assert plain.layers is not None
    start, size = plain.weights.vector.clone(), end.numel()
    personal = plain.layers.split(None).own.mask
    assert torch.equal(end[personal].view(torch.int32), start[personal].view(torch.int32))
    rows = (tmp_path / "ours/test/seed0/metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    rounds = [dict(zip(names, row.split(","), strict=True)) for row in rows[1:]]
    last = next(row for row in reversed(rounds) if row["phase"] == "train")
    memories, server = state["algorithm"]["memories"], state["server"]
    trained_by = {
        client: mask_of(
            tmp_path / "ours", server["own-masks"].get(client, "") or server["mask"], size
        )
        for client in memories
    }
    if "mask-scope" not in setting:  # all send the same number of weights
        travelling = plain.layers.split(next(iter(trained_by.values()))).travelling
        assert int(last["bytes_up"]) == 3 * 4 * travelling.num_trained
        if not setting:  # in others, masks and the head travel besides
            assert int(last["bytes_down"]) == 3 * 4 * travelling.num_trained
    accuracies: list[float] = []
    for client, digest in memories.items():
        memory = load_file(tmp_path / "ours/test/seed0/clients" / client / digest)
        own = plain.layers.split(trained_by[client]).own
        assert set(memory) == {LAYERS} and memory[LAYERS].numel() == own.num_trained
        assert not torch.equal(memory[LAYERS], own.gather(start))
        if setting:
            plain.head.load(_head(tmp_path / "ours", server["head"]))  # type: ignore[union-attr]
        plain.weights.load(end)
        own.scatter_(plain.weights.vector, memory[LAYERS])
        right = accuracy(plain, 1, int(client))
        accuracies += [] if right is None else [right]
    assert found["personal"]["clients"] == len(memories)
    assert found["personal"]["own"]["test_accuracy"] == pytest.approx(np.mean(accuracies))


def _head(folder: Path, digest: str) -> Tensor:
    data = (folder / "test/seed0/blobs" / digest).read_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


class _Died(Exception):
    pass


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param({"strategy": "scaffold", "personal-steps": 2}, id="scaffold, personal first"),
        pytest.param(OWN_MASKS, id="own masks", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_dies_after_every_round_ends_with_the_same_bits(
    tmp_path: Path, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(tmp_path / "unbroken", **setting)
    add = RunSession.add

    def add_and_die(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        raise _Died

    monkeypatch.setattr(RunSession, "add", add_and_die)
    deaths = 0
    while True:
        try:
            resumed = run(tmp_path / "parts", **setting)
            break
        except _Died:
            deaths += 1
    assert deaths > 3
    for key in ("final-weights-sha256", "personal", "bytes-up", "bytes-down"):
        assert resumed[key] == unbroken[key]
    memories = [
        parts(tmp_path / name)[0]["algorithm"]["memories"] for name in ("unbroken", "parts")
    ]
    assert memories[0] == memories[1]


def test_a_client_that_is_not_sampled_keeps_its_bits_and_a_lost_memory_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client 0 takes part in the first round and the last; its disk is emptied in between."""
    folder = tmp_path / "test/seed0/clients"
    order = {1: [0, 1], 2: [1, 2], 3: [0, 2]}
    monkeypatch.setattr(
        "strategies.nodes.Nodes.sample", lambda self, fraction, *draw, **_: order[draw[-1]]
    )
    add = RunSession.add
    kept: list[set[str]] = []

    def look(self: RunSession, *arguments: Any) -> None:
        add(self, *arguments)
        there = {path.name for path in (folder / "0").glob("*")}
        kept.append(there)
        if len(kept) == 3:  # rounds 0, 1 and 2 are done
            for path in (folder / "0").iterdir():
                path.unlink()

    monkeypatch.setattr(RunSession, "add", look)
    # As where clients have machines of their own: here a run stops where its own disk is damaged.
    monkeypatch.setattr("strategies.exchange.Exchange.one_machine", False)
    summary = run(tmp_path)
    assert len(kept[1]) == 1 and kept[1] == kept[2]
    assert summary["client-memories-lost"] == 1
    assert summary["final"]["clients_failed"] == 1
    assert summary["personal"]["clients"] == 2


def test_one_client_alone_is_local_training(tmp_path: Path) -> None:
    """What travels takes a round trip through an update, so that it is equal to rounding."""
    values = {
        "num-clients": 1, "partition": "iid", "fraction-train": 1.0, "momentum": 0.0,
    }  # fmt: skip
    run(tmp_path / "plain", **values, **{"personal-layers": "none"})
    run(tmp_path / "ours", **values)
    expected, (state, found) = parts(tmp_path / "plain")[1], parts(tmp_path / "ours")
    digest = state["algorithm"]["memories"]["0"]
    own = workspace(tmp_path, **values).layers.split(None).own  # type: ignore[union-attr]
    memory = load_file(tmp_path / "ours/test/seed0/clients/0" / digest)
    own.scatter_(found, memory[LAYERS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layers", "share"), [("norm", "none"), ("*weight,*bias", "all")])
def test_layers_that_do_not_fit_the_mask_are_refused(
    tmp_path: Path, layers: str, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the mask trains none of them, or nothing else."""
    inside = layers != "norm"

    def only(workspace: Workspace, *arguments: Any) -> FlatMask:
        assert workspace.layers is not None
        own = workspace.layers.split(None).own.mask
        return FlatMask(own if inside else ~own)

    monkeypatch.setattr("server_app.mask_phases.own_mask", only)
    with pytest.raises(
        RunError, match=f"{share} of the [0-9]+ weights that it trains are personal"
    ):
        run(tmp_path, **{**MASKED, "personal-layers": layers})
