"""Shared images: who holds them, and that what is made before training sees each image once."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.app import app as client_app
from engine.client_memory import forget_run
from engine.inprocess import run_in_process
from fedta_app.config import RunConfig
from fedta_app.errors import PartitionError
from fedta_app.heads.ridge import RidgeStatistics
from fedta_app.partition.schemes import class_counts, partition, partition_digest
from fedta_app.partition.sharing import label_distances, partition_with_shared
from fedta_app.training.head_fit import (
    PersonalHeads,
    empty_statistics,
    head_images,
    head_statistics,
    pooled_head,
)
from fedta_app.training.scoring import scored_positions
from fedta_app.training.workspace import Workspace, build_workspace
from server_app.app import app as server_app

EXAMPLES = settings(deadline=None, max_examples=40)


def _labels(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


@EXAMPLES
@given(
    sizes=st.lists(st.integers(5, 40), min_size=2, max_size=10),
    fraction=st.floats(0.05, 0.7),
    portion=st.floats(0.3, 1),
    num_clients=st.integers(2, 6),
)
def test_own_images_are_disjoint_and_shared_ones_are_drawn_from_one_set(
    sizes: list[int], fraction: float, portion: float, num_clients: int
) -> None:
    labels = _labels(sizes)
    options: dict[str, Any] = {"scheme": "dirichlet", "alpha": 0.5, "shared_portion": portion}
    try:
        parts = partition_with_shared(labels, num_clients, shared_fraction=fraction, **options)
    except PartitionError:
        return
    size = sum(round(fraction * number) for number in sizes)
    holders = np.bincount(np.concatenate(parts), minlength=len(labels))
    assert all((np.diff(part) > 0).all() for part in parts)
    # Everybody has its portion of G, and the others are divided among all.
    each = round(portion * size)
    assert sum(map(len, parts)) == len(labels) - size + each * num_clients
    assert (holders != 1).sum() <= size
    own = [len(part) - each for part in parts]
    assert max(own) - min(own) <= 1
    if portion == 1:
        assert (holders == num_clients).sum() == size


def test_nothing_shared_is_the_partition_itself() -> None:
    labels = _labels([30] * 4)
    plain = partition(labels, 5, scheme="dirichlet", alpha=0.3, seed=2)
    found = partition_with_shared(labels, 5, scheme="dirichlet", alpha=0.3, seed=2)
    assert partition_digest(found) == partition_digest(plain)


def test_shared_images_hold_all_classes_and_portions_differ() -> None:
    labels = _labels([100] * 5)
    options: dict[str, Any] = {"scheme": "classes", "num_classes_per_client": 1}
    parts = partition_with_shared(labels, 10, shared_fraction=0.2, shared_portion=0.5, **options)
    counts = class_counts(labels, parts, 5)
    assert (np.sort(counts, axis=1)[:, 0] > 0).all()  # everybody has every class now
    assert len({tuple(part) for part in map(tuple, counts)}) == 10
    again = partition_with_shared(labels, 10, shared_fraction=0.2, shared_portion=0.5, **options)
    assert partition_digest(parts) == partition_digest(again)


def test_labels_come_closer_as_more_is_shared() -> None:
    """Zhao et al., section 4: one class of ten a client is 1.8 apart, and G brings it down."""
    labels = _labels([450] * 10)
    means = []
    for fraction in (0.0, 0.05, 0.2, 0.5):
        parts = partition_with_shared(
            labels, 10, scheme="classes", num_classes_per_client=1, shared_fraction=fraction
        )
        means.append(label_distances(class_counts(labels, parts, 10)).mean())
    # At 5%, 22 images of each class are shared, and 428 of one class are a client's own.
    expected = [1.8, 1.8 * 428 / (428 + 220), 1.8 * 360 / (360 + 900), 1.8 * 225 / (225 + 2250)]
    assert means == pytest.approx(expected)


def test_a_share_of_nobody_is_refused() -> None:
    with pytest.raises(
        PartitionError, match=r"shared_fraction = 0\.001 and shared_portion = 1 of 60"
    ):
        partition_with_shared(_labels([30] * 2), 3, scheme="iid", shared_fraction=0.001)
    with pytest.raises(PartitionError, match="between 1 and the 30 training samples, got 31"):
        partition_with_shared(_labels([30] * 2), 31, scheme="iid", shared_fraction=0.5)


# --- in a run

RUN = {
    "name": "test", "partition": "classes", "num-clients": 10, "num-classes-per-client": 2,
    "num-server-rounds": 2, "local-steps": 2, "eval-size": 50, "eval-every": 2, "threads": 1,
    "engine": "in-process", "shared-fraction": 0.1,
}  # fmt: skip


def workspace_of(folder: Path, **values: Any) -> Workspace:
    forget_run()
    return build_workspace(RunConfig.from_mapping({**RUN, "results-dir": str(folder), **values}))


def test_validation_and_test_images_are_those_without_sharing(tmp_path: Path) -> None:
    with_shared = workspace_of(tmp_path)
    without = workspace_of(tmp_path, **{"shared-fraction": 0.0})
    assert with_shared.data.digest == without.data.digest
    assert max(part.max() for part in with_shared.partitions) < len(with_shared.data.train)
    sizes = [len(part) for part in with_shared.partitions]
    classes = torch.bincount(with_shared.data.train.labels)
    shared = sum(round(0.1 * number) for number in classes.tolist())
    assert sum(sizes) == len(with_shared.data.train) + 9 * shared


@pytest.mark.parametrize("portion", [1.0, 0.5])
def test_the_ridge_head_and_summed_scores_see_every_image_once(
    tmp_path: Path, portion: float
) -> None:
    space = workspace_of(tmp_path, head="ridge", **{"shared-portion": portion})
    total: RidgeStatistics = empty_statistics(space)
    for client in range(10):
        counted = head_images(space, space.counted_positions(client))
        total = total + head_statistics(space, counted)
    held = np.unique(np.concatenate(space.partitions))
    pooled = head_statistics(space, space.data.train.subset(torch.from_numpy(held)))
    assert total.count == len(held) and (portion < 1 or len(held) == len(space.data.train))
    torch.testing.assert_close(total.gram, pooled.gram, rtol=1e-10, atol=1e-8)
    scored = torch.cat([scored_positions(space, client) for client in range(10)])
    assert torch.equal(scored.sort().values, torch.from_numpy(held))


def test_of_some_clients_each_image_counts_once_too(tmp_path: Path) -> None:
    """Not on a client that is not asked, which would leave out what all of the others hold."""
    values = {"mask-rule": "least-sensitive", "head": "ridge", "shared-portion": 0.5}
    space, asked = workspace_of(tmp_path, **values), [7, 4, 9]
    held = np.unique(np.concatenate([space.partitions[client] for client in asked]))
    for of in (space.counted_positions, partial(scored_positions, space)):
        found = torch.cat([of(client, asked) for client in asked])
        assert torch.equal(found.sort().values, torch.from_numpy(held))


def test_what_compares_clients_takes_all_images_of_each(tmp_path: Path) -> None:
    space = workspace_of(tmp_path, head="ridge", ridge=0.01, **{"mask-rule": "agreement"})
    held = space.client_positions(3)
    assert torch.equal(scored_positions(space, 3), held)
    own = head_statistics(space, head_images(space, held))
    weight, bias = own.solve(0.01 * own.scale())
    alone = torch.cat([weight.flatten(), bias]) / pooled_head(space).temperature
    PersonalHeads(space, 1e-12).load(3)
    assert space.head is not None
    torch.testing.assert_close(space.head.vector, alone.float(), rtol=1e-4, atol=1e-5)


def test_a_head_of_the_rounds_clients_knows_the_classes_that_they_share(tmp_path: Path) -> None:
    values = {
        **RUN, "head": "ridge", "num-classes-per-client": 1, "fraction-train": 0.2, "lr": 1e-4,
        "num-server-rounds": 3, "eval-every": 1, "eval-size": 0, "shared-fraction": 0.2,
        "head-refresh": 1, "head-refresh-clients": "sampled", "seed": 1,
        "results-dir": str(tmp_path),
    }  # fmt: skip
    run_in_process(server_app, client_app, values, 10)
    summary = json.loads((tmp_path / "test/seed1/summary.json").read_text())
    assert summary["final"]["val_accuracy"] > 0.7  # two classes of ten would be a fifth


def test_a_clients_own_mask_sees_its_shared_images_too(tmp_path: Path) -> None:
    own = {"head": "ridge", "mask-rule": "least-sensitive", "mask-scope": "client"}
    space = workspace_of(tmp_path, **own)
    assert torch.equal(scored_positions(space, 3), space.client_positions(3))


def test_a_run_says_how_far_labels_are_apart_and_ends_elsewhere(tmp_path: Path) -> None:
    found = {}
    for fraction in (0.0, 0.1):
        folder = tmp_path / str(fraction)
        values = {**RUN, "shared-fraction": fraction, "results-dir": str(folder)}
        run_in_process(server_app, client_app, values, 10)
        found[fraction] = json.loads((folder / "test/seed0/summary.json").read_text())
    before, after = found[0.0], found[0.1]
    assert before["partition"]["images-per-client"] == [126, 126.0, 126]
    assert after["partition"]["images-per-client"][1] == pytest.approx(126 + 0.9 * 126, abs=5)
    assert 1.5 < before["partition"]["label-distance"] < 1.7  # two of ten equal classes: 1.6
    assert after["partition"]["label-distance"] < before["partition"]["label-distance"] - 0.5
    assert after["identity"]["partition-sha256"] != before["identity"]["partition-sha256"]
    assert after["final-weights-sha256"] != before["final-weights-sha256"]
