"""The data sets: uint8 images on the compute device, split into train, validation and test."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity, extract_archive

from fedta_app.data.catalogue import DATASETS
from fedta_app.errors import DataError
from fedta_app.seeding import numpy_generator, torch_generator

IntArray = npt.NDArray[np.int64]

DIGITS_POOL_PER_CLASS = 140  # of 174 to 183 images; what is left is the test set


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images (N, channels, height, width), uint8, with labels (N,), int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same images on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def subset(self, indices: npt.ArrayLike | Tensor) -> "ImageSet":
        """Return a copy of the images of `indices` (int, shape (n,)), on the same device."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        return ImageSet(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set: its splits, and what is needed to feed it to a model.

    Attributes
    ----------
    name, num_classes
        Name in `DATASETS`; classes are 0 .. num_classes - 1.
    train, val, test
        Disjoint. Clients partition `train`; `val` is for every choice, `test` for reporting only.
    mean, std
        Of each channel over the images of `train`, in the scale where 255 is 1.
    crop_padding, flip
        The augmentation that suits these images (`fedta_app.data.images.random_crop_flip`).
    digest
        sha256 (hexadecimal) of the images and labels of the three splits.
    """

    name: str
    num_classes: int
    train: ImageSet
    val: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    digest: str

    def to(self, device: torch.device | str) -> "DataSplits":
        """Return the same splits on `device`."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)


def load_data(dataset: str, data_dir: str | Path, *, val_size: float, seed: int) -> DataSplits:
    """Load a data set and split its training images into train and validation.

    Parameters
    ----------
    dataset : {"digits", "cifar100", "synthetic"}
        "digits": scikit-learn's 8 x 8 digits, which need no files; 1,400 images, 140 of each
        class, for train and validation, and the other 397 for test. "cifar100": 50,000 and 10,000
        images, downloaded into `data_dir` unless they are there. "synthetic": noise in
        CIFAR-100's sizes, for benchmarks where its files are not.
    data_dir : str or Path
        Where `cifar-100-python/` is, or the archive, or where to download it.
    val_size : float
        Share of validation images, between 0 and 1 (`stratified_split`).
    seed : int
        Decides train and validation; the test split never changes.

    Raises
    ------
    DataError
        If `dataset` or `val_size` is out of range, or files are missing or damaged.
    """
    if dataset not in LOADERS:
        raise DataError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    load, crop_padding, flip = LOADERS[dataset]
    pool, test = load(Path(data_dir).expanduser())
    train_indices, val_indices = stratified_split(pool.labels.numpy(), val_size, seed)
    train, val = pool.subset(train_indices), pool.subset(val_indices)
    mean, std = channel_statistics(train.images)
    digest = _digest((train, val, test))
    num_classes = DATASETS[dataset].classes
    return DataSplits(dataset, num_classes, train, val, test, mean, std, crop_padding, flip, digest)


def stratified_split(
    labels: npt.ArrayLike, val_size: float, seed: int
) -> tuple[IntArray, IntArray]:
    """Split samples into train and validation with the same class proportions.

    Parameters
    ----------
    labels : array-like of int, shape (N,)
        Class of every sample.
    val_size : float
        Share of validation samples, between 0 and 1: round(val_size * N) of them, which is at
        least one and leaves at least one. Each class gives its exact share rounded down, and those
        with the largest remainder (equal ones: at random) one more.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    train, val : int64 arrays
        Indices, in ascending order.

    Raises
    ------
    DataError
        If `val_size` leaves one of the two empty.
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    total = len(classes)
    number = isinstance(val_size, int | float) and not isinstance(val_size, bool)
    if not number or not 0 < val_size < 1 or not 0 < round(val_size * total) < total:
        raise DataError(
            f"val_size must be between 0 and 1 and leave at least one of the {total} images for "
            f"training and for validation, got {val_size!r}"
        )
    rng = numpy_generator("validation split", seed)
    taken = _apportion(np.bincount(classes), round(val_size * total), rng)
    is_val = np.zeros(total, dtype=bool)
    for c, count in enumerate(taken):
        is_val[rng.permutation(np.flatnonzero(classes == c))[:count]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def _apportion(counts: IntArray, number: int, rng: np.random.Generator) -> IntArray:
    """Share `number` in proportion to `counts` by largest remainder, in exact integers."""
    shares, remainders = np.divmod(counts * number, counts.sum())
    order = np.lexsort((rng.random(len(counts)), -remainders))
    shares[order[: number - int(shares.sum())]] += 1
    return shares


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images, where 255 is 1.

    Sums of whole numbers below 2**53 are exact in float64, so the order of images is irrelevant.
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = total.clone()
    for chunk in torch.split(images, 512):
        values = chunk.double()
        total += values.sum(dim=(0, 2, 3))
        squares += values.square_().sum(dim=(0, 2, 3))
    pixels = images.numel() / images.shape[1]
    mean = total / pixels
    std = (squares / pixels - mean.square()).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _digest(splits: tuple[ImageSet, ...]) -> str:
    """Return the sha256 of shapes, images and labels."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()


def _load_digits(_: Path) -> tuple[ImageSet, ImageSet]:
    """Return the digits for train and validation, equally many of each class, and for test."""
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    everything = ImageSet(torch.from_numpy(images), torch.from_numpy(bunch.target).long())
    rng = numpy_generator("digits test split")  # no seed: the same for every run
    is_test = np.ones(len(everything), dtype=bool)
    for c in range(10):
        members = rng.permutation(np.flatnonzero(bunch.target == c))
        is_test[members[:DIGITS_POOL_PER_CLASS]] = False
    pool, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return everything.subset(pool), everything.subset(test)


def _load_cifar100(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return CIFAR-100's training and test images from `data_dir`, downloaded if absent."""
    try:
        return _read_cifar100(data_dir)
    except RuntimeError:  # torchvision's word for missing or damaged
        _refuse_damaged(data_dir / CIFAR100.base_folder)
    except OSError as error:
        raise DataError(f"CIFAR-100 in {data_dir} cannot be read ({error})") from error
    _fetch_cifar100(data_dir)
    return _read_cifar100(data_dir)


def _read_cifar100(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Read the files of `data_dir`; torchvision checks their md5 sums before it unpickles."""
    with warnings.catch_warnings():
        # the pickles of 2009 predate a check of NumPy 2.4
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        raw = [CIFAR100(data_dir, train=train, download=False) for train in (True, False)]
    pool, test = (
        ImageSet(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in raw
    )
    return pool, test


def _cifar100_files() -> dict[str, str]:
    """Return the md5 sum of every file that torchvision needs."""
    meta = (CIFAR100.meta["filename"], CIFAR100.meta["md5"])
    return dict((*CIFAR100.train_list, *CIFAR100.test_list, meta))


def _refuse_damaged(folder: Path) -> None:
    """Raise DataError if one of the files is there and is not the original."""
    for name, md5 in _cifar100_files().items():
        file = folder / name
        if file.exists() and not check_integrity(file, md5):
            raise DataError(f"{file} is damaged (its md5 sum is not {md5}): delete or replace it")


def _fetch_cifar100(data_dir: Path) -> None:
    """Unpack the archive in `data_dir`, or download it; files appear whole or not at all."""
    folder, archive = data_dir / CIFAR100.base_folder, data_dir / CIFAR100.filename
    if archive.exists() and not check_integrity(archive, CIFAR100.tgz_md5):
        raise DataError(
            f"{archive} is damaged (its md5 sum is not {CIFAR100.tgz_md5}): delete or replace it"
        )
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar100-", dir=data_dir) as temporary:
            if archive.exists():
                extract_archive(archive, temporary)
            else:
                CIFAR100(temporary, download=True)
            folder.mkdir(exist_ok=True)
            for name in _cifar100_files():
                os.replace(Path(temporary, CIFAR100.base_folder, name), folder / name)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(
            f"CIFAR-100 is not in {data_dir} and could not be fetched ({error}): put the files "
            f"{', '.join(_cifar100_files())} into {folder}, or {archive.name} into {data_dir}"
        ) from error


def _make_synthetic(_: Path) -> tuple[ImageSet, ImageSet]:
    """Return noise, with CIFAR-100's numbers of images and classes, the same for every run."""
    generator = torch_generator("synthetic images")
    pool, test = (
        ImageSet(
            torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.arange(count) % 100,
        )
        for count in (50_000, 10_000)
    )
    return pool, test


class Loader(NamedTuple):
    """How a data set is read (training and validation images, test images), and augmented."""

    load: Callable[[Path], tuple[ImageSet, ImageSet]]
    crop_padding: int = 0
    flip: bool = False


LOADERS = {
    "digits": Loader(_load_digits),  # 8 pixels leave no room for crops; a mirrored digit is none
    "cifar100": Loader(_load_cifar100, crop_padding=4, flip=True),
    "synthetic": Loader(_make_synthetic, crop_padding=4, flip=True),
}
