"""Clients of unequal sizes: what stays exact, and that algorithms weigh clients by their images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from fedta_app.config import RunConfig
from fedta_app.errors import PartitionError
from fedta_app.partition.allocation import split_in_proportion
from fedta_app.partition.schemes import MAX_SPREAD, SCHEMES, partition, partition_digest
from fedta_app.training.client import train_client
from fedta_app.training.workspace import build_workspace
from server_app.app import app as server_app

EXAMPLES = settings(deadline=None, max_examples=60)
class_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
spreads = st.floats(0.01, MAX_SPREAD)

DRAWN = [scheme for scheme in SCHEMES if scheme != "natural"]  # whose sizes are drawn


def _labels(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def _check(labels: np.ndarray, parts: list[np.ndarray], num_clients: int) -> None:
    """Every sample once, ascending, and nobody empty."""
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)


@EXAMPLES
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), more=st.integers(0, 200))
def test_proportional_shares_add_up_and_none_is_empty(weights: list[float], more: int) -> None:
    number = len(weights) + more
    shares = split_in_proportion(number, np.array(weights))
    assert shares.sum() == number and shares.min() >= 1
    quotas = number * np.array(weights) / np.sum(weights)
    if quotas.min() >= 1:
        assert (np.abs(shares - quotas) < 1).all()


@EXAMPLES
@given(
    sizes=class_sizes,
    share=st.floats(0, 1),
    spread=spreads,
    scheme=st.sampled_from(["iid", "dirichlet"]),
)
def test_every_image_is_used_once(
    sizes: list[int], share: float, spread: float, scheme: str
) -> None:
    labels = _labels(sizes)
    num_clients = max(1, round(share * len(labels)))
    parts = partition(labels, num_clients, scheme=scheme, alpha=0.5, size_spread=spread)
    _check(labels, parts, num_clients)


@EXAMPLES
@given(sizes=class_sizes, num_clients=st.integers(1, 40), each=st.integers(1, 8), spread=spreads)
def test_each_client_has_exactly_nc_classes_or_there_is_a_refusal(
    sizes: list[int], num_clients: int, each: int, spread: float
) -> None:
    labels = _labels(sizes)
    try:
        parts = partition(
            labels,
            num_clients,
            scheme="classes",
            num_classes_per_client=each,
            size_spread=spread,
        )
    except PartitionError:
        return
    _check(labels, parts, num_clients)
    assert [len(np.unique(labels[part])) for part in parts] == [each] * num_clients


@pytest.mark.parametrize("scheme", DRAWN)
def test_sizes_are_lognormal(scheme: str) -> None:
    """Their logarithms have the standard deviation that was asked for, and zero means none."""
    labels = _labels([450] * 100)
    options = {"scheme": scheme, "num_classes_per_client": 50, "alpha": 1e6}
    logs = []
    for seed in range(10):
        parts = partition(labels, 100, size_spread=0.5, seed=seed, **options)
        logs.append(np.log([len(part) for part in parts]))
    assert np.std(logs, axis=1).mean() == pytest.approx(0.5, abs=0.05)
    plain = partition_digest(partition(labels, 100, **options))
    assert partition_digest(partition(labels, 100, size_spread=0.0, **options)) == plain


def test_sizes_depend_on_the_seed_and_not_on_the_scheme() -> None:
    labels = _labels([60] * 10)

    def sizes(scheme: str, seed: int) -> list[int]:
        parts = partition(labels, 20, scheme=scheme, alpha=0.1, size_spread=1.0, seed=seed)
        return [len(part) for part in parts]

    assert sizes("iid", 0) == sizes("dirichlet", 0) == sizes("iid", 0)
    assert len({tuple(sizes("iid", seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("spread", [-0.1, MAX_SPREAD + 1, float("nan"), True, "1", None])
def test_bad_spreads_get_a_sentence(spread: object) -> None:
    with pytest.raises(PartitionError, match="size_spread must be a number between 0 and 5, got"):
        partition(_labels([5] * 4), 4, scheme="iid", size_spread=spread)  # type: ignore[arg-type]


def test_a_class_for_each_client_leaves_no_choice_of_sizes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = {
        "partition": "classes", "num-clients": 5, "num-classes-per-client": 2, "size-spread": 1.0,
        "results-dir": str(tmp_path), "engine": "in-process",
    }  # fmt: skip
    with pytest.raises(PartitionError, match="size-spread must be 0 when num-clients"):
        build_workspace(RunConfig.from_mapping(config))


def test_more_classes_than_images_of_them_are_refused() -> None:
    labels = _labels([2, 2, 40])
    with pytest.raises(PartitionError, match="over 8 clients of exactly"):
        partition(labels, 8, scheme="classes", num_classes_per_client=2, size_spread=1.0)


def test_fedavg_weighs_clients_by_their_images(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A run's round against a loop over the clients; the mean of equal weights is far from it."""
    config = {
        "name": "test", "partition": "iid", "num-clients": 6, "size-spread": 1.5,
        "fraction-train": 1.0, "num-server-rounds": 1, "local-steps": 2, "lr": 0.1, "threads": 1,
        "weights": "random", "eval-size": 20, "engine": "in-process",
        "results-dir": str(tmp_path),
    }  # fmt: skip
    workspace = build_workspace(RunConfig.from_mapping(config))
    start = workspace.weights.vector.clone()
    sizes = [len(part) for part in workspace.partitions]
    assert max(sizes) > 3 * min(sizes)
    updates = [
        train_client(workspace, start, partition_id=k, server_round=1, lr=0.1).update.clone()
        for k in range(6)
    ]
    weighed = sum(n * u.double() for n, u in zip(sizes, updates, strict=True)) / sum(sizes)
    found = run_in_process(server_app, client_app, config, 6).model().state_dict()
    ours = torch.cat([found[name].flatten() for name in workspace.weights.names])
    torch.testing.assert_close((ours - start).double(), weighed, rtol=1e-3, atol=1e-7)
    equal = sum(u.double() for u in updates) / 6
    assert (equal - weighed).norm() > 0.1 * weighed.norm()
