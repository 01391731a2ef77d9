"""Text in training, head, scores and measurements, against naive loops over windows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.running.launch import run_here
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, ModelError, PartitionError
from fedta_app.finished import load_run
from fedta_app.masks.selection import round_density
from fedta_app.models.building import build_model
from fedta_app.runs.directory import run_path
from fedta_app.runs.records import read_rows, read_summary
from fedta_app.seeding import torch_generator
from fedta_app.sensitivity import fisher_diagonal
from fedta_app.training.client import LocalResult, train_client
from fedta_app.training.head_fit import head_images, head_statistics
from fedta_app.training.steps import evaluate, mini_batches
from fedta_app.training.workspace import Workspace, build_workspace
from tests.roles import write_roles

TEXT = {
    "dataset": "shakespeare", "model": "char_lstm", "weights": "random", "partition": "natural",
    "num-clients": 4, "lr": 0.5, "batch-size": 4, "local-steps": 2, "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roles(tmp_path_factory.mktemp("roles"))


def config(folder: Path, **values: Any) -> RunConfig:
    named = {key.replace("_", "-"): value for key, value in values.items()}
    return RunConfig.from_mapping({**TEXT, "data-dir": str(folder), **named})


def workspace(folder: Path, **values: Any) -> Workspace:
    return build_workspace(config(folder, **values))


def test_the_network_is_that_of_the_paper() -> None:
    built = build_model(
        "char_lstm", weights="random", image_size=0, num_classes=80, in_channels=80, seed=0
    )
    sizes = {name: tuple(value.shape) for name, value in built.model.named_parameters()}
    assert sizes["embedding.weight"] == (80, 8) and sizes["head.weight"] == (80, 256)
    assert sizes["lstm.weight_ih_l0"] == (1024, 8) and sizes["lstm.weight_hh_l1"] == (1024, 256)
    assert sum(value.numel() for value in built.model.parameters()) == 819_920
    other = build_model(
        "char_lstm", weights="random", image_size=0, num_classes=80, in_channels=80, seed=1
    )
    assert other.source.sha256 != built.source.sha256


def test_a_client_does_what_a_plain_loop_does(folder: Path) -> None:
    ours, plain = workspace(folder), workspace(folder)
    assert [len(part) for part in ours.partitions] == [41, 1054, 2026, 730]
    data, start = plain.data.train, ours.weights.vector.clone()
    mine = (data.clients == 2).nonzero()[:, 0]  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.5, momentum=0.9)
    for batch in mini_batches(len(mine), 4, 2, torch_generator(0, "batches", 3, 2)):
        chosen = mine[batch]
        optimizer.zero_grad()
        logits = plain.model(data.images[chosen].long())
        cross_entropy(logits, data.labels[chosen]).backward()
        optimizer.step()
    found = train_client(ours, start.clone(), partition_id=2, server_round=3, lr=0.5)
    assert found.num_examples == 2026
    assert torch.equal(found.update, plain.weights.vector - start)


def test_measurements_are_those_of_a_loop_over_windows(folder: Path) -> None:
    work = workspace(folder)
    images = work.data.val.subset(range(60))
    with torch.no_grad():
        logits = torch.cat([work.model(window[None].long()) for window in images.images])
    loss, accuracy = evaluate(work, images)
    assert loss == pytest.approx(float(cross_entropy(logits, images.labels)), rel=1e-5)
    assert accuracy == float((logits.argmax(1) == images.labels).float().mean())


def test_the_head_is_made_from_the_roles_that_take_part(folder: Path) -> None:
    work = workspace(folder, head="ridge", head_fraction=0.05)
    total = head_statistics(work, head_images(work, None))
    parts = [
        head_statistics(work, head_images(work, work.counted_positions(client)))
        for client in range(4)
    ]
    assert sum(part.count for part in parts) == total.count
    summed = parts[0] + parts[1] + parts[2] + parts[3]
    # The rounding of a feature depends on the batch that it is computed in.
    torch.testing.assert_close(summed.gram, total.gram, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed.class_sums, total.class_sums, rtol=1e-5, atol=1e-5)


def test_scores_are_those_of_a_naive_loop(folder: Path) -> None:
    work = workspace(folder)
    images = work.data.train.subset(range(0, 3000, 600))
    batches = [(images.images.long(), images.labels)]
    found = fisher_diagonal(work.model, batches, labels="true")
    expected = {name: torch.zeros_like(p) for name, p in work.model.named_parameters()}
    for window, label in zip(images.images.long(), images.labels, strict=True):
        loss = cross_entropy(work.model(window[None]), label[None])
        gradients = torch.autograd.grad(loss, list(work.model.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient.square()
    assert all(found[name].any() for name in expected)
    for name, total in expected.items():
        torch.testing.assert_close(found[name], total, rtol=1e-5, atol=1e-12)


def weighted(results: list[LocalResult], weights: list[int]) -> Tensor:
    shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    return sum(s * r.double() for s, r in zip(shares, results, strict=True))  # type: ignore[misc]


def test_clients_weigh_as_much_as_they_have_windows(folder: Path, tmp_path: Path) -> None:
    one = config(
        folder, engine="in-process", num_server_rounds=1, fraction_train=1.0, eval_size=8,
        results_dir=str(tmp_path), strategy="fedavg",
    )  # fmt: skip
    work = workspace(folder)
    start = work.weights.vector.clone()
    updates, sizes = [], []
    for client in range(4):
        result = train_client(work, start.clone(), partition_id=client, server_round=1, lr=0.5)
        updates.append(result.update.clone())
        sizes.append(result.num_examples)
    run_here(one)
    kept = load_run(run_path(one)).kept("last").tensors
    final = torch.cat([kept[name].flatten() for name in work.weights.names]).double()
    moved = final - start.double()
    torch.testing.assert_close(moved, weighted(updates, sizes), rtol=0, atol=1e-6)
    assert (moved - weighted(updates, [1, 1, 1, 1])).abs().max() > 1e-4


RUNS: dict[str, dict[str, Any]] = {
    "fedprox": {"strategy": "fedprox", "mask_rule": "random"},
    "scaffold": {"strategy": "scaffold", "mask_rule": "lowest-magnitude"},
    "fedadam": {"strategy": "fedadam", "mask_rule": "random"},
    "sensitive": {
        "strategy": "fedavg", "mask_rule": "least-sensitive", "calibration_rounds": 1,
        "calibration_examples": 2,
    },
    "iid": {"strategy": "scaffold", "head": "random", "partition": "iid"},
    "dirichlet": {"strategy": "fedavg", "head": "random", "partition": "dirichlet"},
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_algorithms_masks_and_partitions_run_on_text(
    folder: Path, tmp_path: Path, case: str
) -> None:
    check_run(folder, tmp_path, **RUNS[case])


@pytest.mark.parametrize("case", ["scaffold", "sensitive"])
def test_text_runs_on_a_gpu(folder: Path, tmp_path: Path, case: str, cuda: torch.device) -> None:
    check_run(folder, tmp_path, **RUNS[case], device=str(cuda))


def check_run(folder: Path, tmp_path: Path, **values: Any) -> None:
    values = {"head": "ridge", "head_fraction": 0.01, "fraction_train": 0.5} | values
    run = config(
        folder, engine="in-process", num_server_rounds=2, eval_every=2, eval_size=8, local_steps=1,
        results_dir=str(tmp_path), **values,
    )  # fmt: skip
    run_here(run)
    summary = read_summary(run_path(run))
    assert summary["status"] == "finished"
    assert all(row["clients_failed"] == "0" for row in read_rows(run_path(run)))
    assert summary["initial-weights-sha256"] != summary["final-weights-sha256"]
    if mask := summary.get("mask"):
        assert mask["trained"] == round_density(0.9, mask["of"])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"dataset": "digits"}, "partition = 'natural' is not allowed with dataset = 'digits'"),
        ({"dataset": "folder"}, "partition = 'natural' is not allowed with dataset = 'folder'"),
        ({"num_clients": 5}, "num-clients must be .* between 1 and the 4 natural clients"),
        ({"model": "cnn"}, "model = 'cnn' is not allowed .* it reads images, and .*char_lstm"),
        ({"dataset": "digits", "partition": "iid"}, "'char_lstm' .* reads text, and .* images"),
        ({"image_size": 32}, "image-size = 32 is not allowed .* it reads text; image-size is 0"),
        ({"trained_blocks": 1}, "trained-blocks = 1 is not allowed with model = 'char_lstm'"),
        ({"weights": "pretrained"}, "there are no pre-trained weights of it"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigError, ModelError, PartitionError), match=sentence):
        workspace(folder, **values)


def test_centralised_training_takes_all_roles(folder: Path) -> None:
    work = workspace(folder, engine="centralized", num_clients=1)
    assert len(work.data.train) == 41 + 1054 + 2026 + 730
