from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.data.loading import load_data
from fedta_app.errors import PartitionError
from fedta_app.partition.schemes import SCHEMES, class_counts, partition, partition_digest

CIFAR_LIKE = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 450))
EXAMPLES = settings(deadline=None, max_examples=60)
class_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def _labels(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


def _check(labels: np.ndarray, parts: list[np.ndarray], num_clients: int) -> None:
    """Disjoint, complete, equal within one, ascending."""
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


def _num_classes(labels: np.ndarray, parts: list[np.ndarray]) -> list[int]:
    return [len(np.unique(labels[part])) for part in parts]


@EXAMPLES
@given(sizes=class_sizes, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_iid_invariants(sizes: list[int], share: float, seed: int) -> None:
    labels = _labels(sizes)
    num_clients = max(1, round(share * len(labels)))
    _check(labels, partition(labels, num_clients, scheme="iid", seed=seed), num_clients)


@EXAMPLES
@given(sizes=class_sizes, share=st.floats(0, 1), log_alpha=st.floats(-6, 6))
def test_dirichlet_invariants(sizes: list[int], share: float, log_alpha: float) -> None:
    labels = _labels(sizes)
    num_clients = max(1, round(share * len(labels)))
    alpha = min(max(10**log_alpha, 1e-6), 1e6)
    parts = partition(labels, num_clients, scheme="dirichlet", alpha=alpha)
    _check(labels, parts, num_clients)


@EXAMPLES
@given(sizes=class_sizes, num_clients=st.integers(1, 40), each=st.integers(1, 8))
def test_classes_invariants_or_a_refusal(sizes: list[int], num_clients: int, each: int) -> None:
    labels = _labels(sizes)
    try:
        parts = partition(labels, num_clients, scheme="classes", num_classes_per_client=each)
    except PartitionError:
        return
    _check(labels, parts, num_clients)
    assert _num_classes(labels, parts) == [each] * num_clients


@EXAMPLES
@given(data=st.data(), num_classes=st.integers(1, 12), num_clients=st.integers(1, 60))
def test_classes_exist_where_the_documentation_promises(
    data: st.DataObject, num_classes: int, num_clients: int
) -> None:
    promised = [n for n in range(1, num_classes + 1) if num_clients * n % num_classes == 0]
    each = data.draw(st.sampled_from(promised))
    fewest = -(-num_clients * each // num_classes)  # so that a client has at least Nc samples
    size = data.draw(st.integers(fewest, fewest + 50))
    labels = _labels([size] * num_classes)
    parts = partition(labels, num_clients, scheme="classes", num_classes_per_client=each)
    _check(labels, parts, num_clients)
    assert _num_classes(labels, parts) == [each] * num_clients


@pytest.mark.parametrize("each", [1, 5, 10, 50, 100])
def test_classes_on_cifar100_sizes(each: int) -> None:
    parts = partition(CIFAR_LIKE, 100, scheme="classes", num_classes_per_client=each)
    _check(CIFAR_LIKE, parts, 100)
    assert _num_classes(CIFAR_LIKE, parts) == [each] * 100
    counts = class_counts(CIFAR_LIKE, parts, 100)
    if each < 100:  # 450 / Nc is whole: classes are shared equally
        assert set(np.unique(counts)) == {0, 450 // each}


@pytest.mark.parametrize("each", [1, 2, 5, 10])
@pytest.mark.parametrize("val_size", [0.1, 0.123])
def test_classes_on_the_digits(each: int, val_size: float) -> None:
    labels = load_data("digits", "unused", val_size=val_size, seed=3).train.labels.numpy()
    parts = partition(labels, 100, scheme="classes", num_classes_per_client=each, seed=3)
    _check(labels, parts, 100)
    assert _num_classes(labels, parts) == [each] * 100


@pytest.mark.parametrize(
    ("scheme", "each", "alpha"),
    [("iid", None, None), ("classes", 2, None), ("classes", 4, None), ("dirichlet", None, 0.5)],
)
def test_ten_thousand_clients(scheme: str, each: int | None, alpha: float | None) -> None:
    parts = partition(CIFAR_LIKE, 10_000, scheme=scheme, num_classes_per_client=each, alpha=alpha)
    _check(CIFAR_LIKE, parts, 10_000)
    if each:
        assert set(_num_classes(CIFAR_LIKE, parts)) == {each}


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "natural"])
def test_a_seed_decides_everything(scheme: str) -> None:
    def digest(seed: int) -> str:
        parts = partition(
            CIFAR_LIKE, 50, scheme=scheme, num_classes_per_client=4, alpha=1.0, seed=seed
        )
        return partition_digest(parts)

    assert digest(0) == digest(0)
    assert len({digest(seed) for seed in range(5)}) == 5


def test_which_classes_meet_is_random() -> None:
    labels = _labels([200] * 10)
    seen = []
    for seed in range(3):
        parts = partition(labels, 100, scheme="classes", num_classes_per_client=2, seed=seed)
        seen.append([tuple(np.unique(labels[part])) for part in parts])
    assert len({tuple(sets) for sets in seen}) == 3
    for sets in seen:  # 100 random pairs: about 40 of the 45; contiguous ranges: 5; two blocks: 25
        assert len(set(sets) & set(combinations(range(10), 2))) > 32


def test_which_samples_a_client_gets_is_random() -> None:
    parts = partition(np.arange(1000) // 100, 20, scheme="classes", num_classes_per_client=1)
    assert not any((np.diff(part) == 1).all() for part in parts)
    halves = [np.median(part) for part in partition(np.zeros(1000, int), 10, scheme="iid")]
    assert all(300 < half < 700 for half in halves)


def test_labels_may_be_tensors_and_need_not_be_contiguous() -> None:
    labels = torch.tensor([-3, 7, 1000] * 6)
    parts = partition(labels, 6, scheme="classes", num_classes_per_client=1)
    assert [len(labels[part].unique()) for part in parts] == [1] * 6
    expected = partition(labels.numpy(), 6, scheme="classes", num_classes_per_client=1)
    assert partition_digest(parts) == partition_digest(expected)


def test_dirichlet_clients_hold_more_classes_as_alpha_grows() -> None:
    means = []
    for alpha in (1e-6, 0.1, 1, 10, 100, 1e6):
        parts = partition(CIFAR_LIKE, 100, scheme="dirichlet", alpha=alpha)
        means.append(np.mean(_num_classes(CIFAR_LIKE, parts)))
    assert (np.diff(means) > 0).all()
    assert means[0] < 1.1 and means[-1] > 95


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_dirichlet_concentration_is_alpha_in_all(alpha: float) -> None:
    # q ~ Dir(alpha p) has E[sum q^2] = (1 + alpha sum p^2) / (1 + alpha)
    sizes = [4000, 2000, 1000, 1000]
    labels = _labels(sizes)
    means = []
    for seed in range(20):
        parts = partition(labels, 20, scheme="dirichlet", alpha=alpha, seed=seed)
        shares = class_counts(labels, parts, 4) / 400
        means.append((shares**2).sum(axis=1).mean())
    prior = np.array(sizes) / sum(sizes)
    expected = (1 + alpha * (prior**2).sum()) / (1 + alpha)
    assert np.mean(means) == pytest.approx(expected, abs=0.05)


BAD = [
    ({"scheme": "shards"}, "scheme must be one of iid, classes, dirichlet, natural, got 'shards'"),
    ({"num_clients": 0}, "num_clients must be an integer between 1 and the 60 .* got 0"),
    ({"num_clients": 61}, "num_clients .* 60 training samples, got 61"),
    ({"num_clients": 2.0}, "num_clients .* got 2.0"),
    ({"num_clients": True}, "num_clients .* got True"),
    ({"scheme": "classes"}, "num_classes_per_client .* got None"),
    ({"scheme": "classes", "num_classes_per_client": 0}, "num_classes_per_client .* got 0"),
    ({"scheme": "classes", "num_classes_per_client": 7}, "between 1 and the 6 classes .* got 7"),
    (
        {"scheme": "classes", "num_classes_per_client": 4, "num_clients": 20},
        "between 1 and the 3 training samples of a client, got 4",
    ),
    (
        {"scheme": "classes", "num_classes_per_client": 2, "num_clients": 2},
        "must be at least the 6 classes, so that every class has a client, got 2 \\* 2",
    ),
    (
        {"scheme": "classes", "num_classes_per_client": 1, "num_clients": 7},
        "found no split of classes of 10 to 10 samples over 7 .* multiple of the 6 classes",
    ),
    ({"scheme": "dirichlet"}, "alpha must be a number between 1e-06 and 1e\\+06, got None"),
    ({"scheme": "dirichlet", "alpha": 0.0}, "alpha .* got 0.0"),
    ({"scheme": "dirichlet", "alpha": -1}, "alpha .* got -1"),
    ({"scheme": "dirichlet", "alpha": float("nan")}, "alpha .* got nan"),
    ({"scheme": "dirichlet", "alpha": "1"}, "alpha .* got '1'"),
    ({"labels": np.zeros((4, 2), int)}, "labels .* got shape \\(4, 2\\)"),
    ({"labels": np.zeros(0, int)}, "labels must be a non-empty"),
    ({"labels": np.zeros(4)}, "array of integers, got shape \\(4,\\) and type float64"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_bad_requests_get_a_sentence(change: dict, sentence: str) -> None:
    arguments = {"labels": _labels([10] * 6), "num_clients": 3, "scheme": "iid", **change}
    with pytest.raises(PartitionError, match=sentence):
        partition(**arguments)


def test_digest_sees_who_holds_what() -> None:
    parts = [np.array([0]), np.array([1, 2])]
    digest = partition_digest(parts)
    assert len(digest) == 64
    assert digest == partition_digest([part.astype(np.int32) for part in parts])
    assert digest != partition_digest([np.array([0, 1]), np.array([2])])
    assert digest != partition_digest(parts[::-1])


def test_class_counts() -> None:
    labels = np.array([0, 2, 2, 1, 2])
    counts = class_counts(labels, [np.array([0, 1, 2]), np.array([3, 4])], 4)
    assert counts.tolist() == [[1, 0, 2, 0], [0, 1, 1, 0]]


def test_real_cifar100(cifar100_dir: object) -> None:
    labels = load_data("cifar100", str(cifar100_dir), val_size=0.1, seed=0).train.labels.numpy()
    for each in (1, 5, 10, 50):
        parts = partition(labels, 100, scheme="classes", num_classes_per_client=each)
        _check(labels, parts, 100)
        assert _num_classes(labels, parts) == [each] * 100
        assert {len(part) for part in parts} == {450}
