import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR100

from fedta_app.data.loading import DataSplits, ImageSet, load_data, stratified_split
from fedta_app.data.sets import DATASETS
from fedta_app.errors import DataError


def _rows(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


# --- the split


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    val_size=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
def test_stratified_split_rounds_every_class_exactly(
    sizes: list[int], val_size: float, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    wanted = round(val_size * len(labels))
    if not 0 < wanted < len(labels):
        with pytest.raises(DataError):
            stratified_split(labels, val_size, seed)
        return
    train, val = stratified_split(labels, val_size, seed)
    assert len(val) == wanted
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    shares = np.array(sizes) * wanted / len(labels)
    assert (np.abs(np.bincount(labels[val], minlength=len(sizes)) - shares) < 1).all()


def test_largest_remainders_are_rounded_up() -> None:
    labels = np.repeat([0, 1, 2], [13, 18, 9])  # a quarter: 3.25, 4.5, 2.25, ten in all
    _, val = stratified_split(labels, 0.25, 0)
    assert np.bincount(labels[val]).tolist() == [3, 5, 2]


def test_which_of_equal_classes_gives_one_more_depends_on_the_seed() -> None:
    labels = np.repeat(np.arange(10), 14)
    more = {
        tuple(np.bincount(labels[stratified_split(labels, 0.125, seed)[1]])) for seed in range(6)
    }
    assert len(more) > 1


def test_the_seed_decides_the_split() -> None:
    labels = np.repeat(np.arange(5), 20)
    splits = [stratified_split(labels, 0.3, seed)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("val_size", [0, 1, 0.0, 1.0, -0.1, 1.5, 0.001, 0.999, float("nan"), "0.1"])
def test_val_size_that_leaves_nothing_is_refused(val_size: float) -> None:
    with pytest.raises(DataError, match=f"val_size must be between 0 and 1 .* got {val_size!r}"):
        stratified_split(np.zeros(100, int), val_size, 0)


# --- the digits


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return load_data("digits", "unused", val_size=0.1, seed=0)


def test_digits_shapes_and_types(digits: DataSplits) -> None:
    for split, number in ((digits.train, 1260), (digits.val, 140), (digits.test, 397)):
        assert len(split) == number
        assert split.images.shape == (number, 1, 8, 8) and split.images.dtype == torch.uint8
        assert split.labels.shape == (number,) and split.labels.dtype == torch.int64
    assert (digits.name, digits.num_classes) == ("digits", 10)
    assert digits.train.labels.bincount().tolist() == [126] * 10
    assert digits.val.labels.bincount().tolist() == [14] * 10
    assert digits.test.labels.bincount().min() == 34
    assert not digits.flip


def test_digits_use_every_image_once_with_its_label(digits: DataSplits) -> None:
    bunch = load_digits()
    expected = sorted(
        (np.floor(image * 255 / 16 + 0.5).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    found = [
        pair
        for split in (digits.train, digits.val, digits.test)
        for pair in zip(_rows(split.images), split.labels.tolist(), strict=True)
    ]
    assert sorted(found) == expected


def test_the_test_split_does_not_depend_on_seed_or_val_size(digits: DataSplits) -> None:
    other = load_data("digits", "unused", val_size=0.3, seed=7)
    assert torch.equal(other.test.images, digits.test.images)
    assert not torch.equal(other.train.images[:100], digits.train.images[:100])
    assert other.digest != digits.digest


def test_digest_and_statistics(digits: DataSplits) -> None:
    again = load_data("digits", "unused", val_size=0.1, seed=0)
    assert again.digest == digits.digest and len(digits.digest) == 64
    assert load_data("digits", "unused", val_size=0.1, seed=1).digest != digits.digest
    pixels = digits.train.images.double().numpy() / 255
    assert digits.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert digits.std == pytest.approx((pixels.std(),), rel=1e-12)


def test_subset_and_device(digits: DataSplits) -> None:
    chosen = [5, 3, 3]
    for indices in (chosen, np.array(chosen), torch.tensor(chosen)):
        part = digits.train.subset(indices)
        assert isinstance(part, ImageSet) and len(part) == 3
        assert torch.equal(part.images, digits.train.images[torch.tensor(chosen)])
        assert torch.equal(part.labels, digits.train.labels[torch.tensor(chosen)])
    moved = digits.to("meta")
    for split in (moved.train, moved.val, moved.test):
        assert split.images.device.type == split.labels.device.type == "meta"
    assert [len(moved.train), len(moved.val), len(moved.test)] == [1260, 140, 397]
    assert (moved.digest, moved.mean) == (digits.digest, digits.mean)


def test_unknown_data_set() -> None:
    with pytest.raises(
        DataError,
        match="dataset must be one of cifar100, digits, shakespeare, synthetic, got 'mnist'",
    ):
        load_data("mnist", "unused", val_size=0.1, seed=0)


@pytest.mark.parametrize("dataset", ["digits", "synthetic"])
def test_data_sets_are_what_is_said_of_them(dataset: str) -> None:
    facts, data = DATASETS[dataset], load_data(dataset, "unused", val_size=0.1, seed=0)
    assert data.num_classes == facts.classes
    assert len(data.train) + len(data.val) == facts.images


# --- CIFAR-100 itself


@pytest.fixture(scope="module")
def cifar100(cifar100_dir: Path) -> DataSplits:
    return load_data("cifar100", cifar100_dir, val_size=0.1, seed=0)


def test_cifar100_shapes_and_strata(cifar100: DataSplits) -> None:
    sizes = [(cifar100.train, 450), (cifar100.val, 50), (cifar100.test, 100)]
    for split, of_each in sizes:
        assert split.images.shape == (100 * of_each, 3, 32, 32)
        assert split.labels.bincount().tolist() == [of_each] * 100
    # what is published for the 50,000 images is about what 45,000 of them have
    assert cifar100.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=1e-3)
    assert cifar100.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=1e-3)


def test_cifar100_splits_are_torchvisions(cifar100: DataSplits, cifar100_dir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2.4 warns of the age of the pickles
        test, pool = (CIFAR100(cifar100_dir, train=train) for train in (False, True))
    assert np.array_equal(cifar100.test.images[123].permute(1, 2, 0).numpy(), test.data[123])
    assert cifar100.test.labels.tolist() == test.targets
    expected = sorted(hash(image.transpose(2, 0, 1).tobytes()) for image in pool.data)
    found = [hash(row) for split in (cifar100.train, cifar100.val) for row in _rows(split.images)]
    assert sorted(found) == expected


def test_cifar100_digest(cifar100: DataSplits, cifar100_dir: Path) -> None:
    same = load_data("cifar100", str(cifar100_dir), val_size=0.1, seed=0)
    other = load_data("cifar100", cifar100_dir, val_size=0.1, seed=1)
    assert same.digest == cifar100.digest != other.digest
    assert torch.equal(other.test.images, cifar100.test.images)


def test_damage_to_the_real_files_is_found(cifar100_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "meta"):
        (folder / name).symlink_to(cifar100_dir / "cifar-100-python" / name)
    content = bytearray((cifar100_dir / "cifar-100-python" / "test").read_bytes())
    content[1_000_000] ^= 1
    (folder / "test").write_bytes(content)
    with pytest.raises(DataError, match="cifar-100-python/test is damaged"):
        load_data("cifar100", tmp_path, val_size=0.1, seed=0)


@pytest.mark.parametrize(
    ("module", "not_needed"),
    [
        ("fedta_app.config", {"sklearn", "scipy", "pandas", "torchvision", "timm"}),
        ("server_app.loop", {"sklearn", "scipy", "pandas"}),
        ("client_app.app", {"sklearn", "scipy", "pandas"}),
    ],
)
def test_what_only_some_runs_need_is_imported_by_those(module: str, not_needed: set[str]) -> None:
    """Such imports take longer than all of our own code does, in every process of a run."""
    script = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert not not_needed & set(done.stdout.split())
