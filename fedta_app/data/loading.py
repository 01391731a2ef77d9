"""Loading a data set, and splitting it into training, validation and test images."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedta_app.data.sets import DATASETS
from fedta_app.data.sets.base import Dataset, ImageSet
from fedta_app.errors import DataError
from fedta_app.seeding import checked_seed, numpy_generator

__all__ = ["DATASETS", "DataSplits", "ImageSet", "channel_statistics", "load_data"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DataSplits:
    """The splits of a data set, with what is needed to feed them to a model.

    Attributes
    ----------
    name : str
        In `DATASETS`, or that of an image folder.
    num_classes : int
        Classes are 0 .. num_classes - 1.
    train : ImageSet
        Partitioned among the clients; the three splits are disjoint.
    val : ImageSet
        For every choice.
    test : ImageSet
        For reporting only.
    mean : tuple of float
        Of each channel over the images of `train`, in the scale where 255 is 1.
    std : tuple of float
        Likewise.
    crop_padding : int
        Of the augmentation that suits these images (`random_crop_flip`).
    flip : bool
        Likewise.
    digest : str
        sha256 (hexadecimal) of the images and labels of the three splits.
    note : str
        A sentence about how the images are divided, to show to the user.
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
    note: str = ""

    def to(self, device: torch.device | str) -> "DataSplits":
        """Return the splits on `device`."""
        train, val, test = (part.to(device) for part in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)


def load_data(
    dataset: str | Dataset, data_dir: str | Path, *, val_size: float, seed: int
) -> DataSplits:
    """Return a data set with validation images split from its training images.

    Parameters
    ----------
    dataset : str or Dataset
        A name in `DATASETS`, or a data set such as `fedta_app.data.image_folder` returns.
    data_dir : str or Path
        Folder of the files of the data set, to which missing ones are downloaded.
    val_size : float
        Share of validation images, between 0 and 1 (see `stratified_split`).
    seed : int
        Seed of the split into training and validation; the test images are always the same.

    Raises
    ------
    DataError
        If `dataset` is unknown, `val_size` is out of range, or files are missing or damaged.

    Examples
    --------
    >>> data = load_data("digits", "", val_size=0.1, seed=0)
    >>> len(data.train), len(data.val), len(data.test)
    (1260, 140, 397)
    >>> data.train.images.shape
    torch.Size([1260, 1, 8, 8])
    """
    if isinstance(dataset, str) and dataset not in DATASETS:
        raise DataError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    chosen = DATASETS[dataset] if isinstance(dataset, str) else dataset
    pool, test = chosen.load(Path(data_dir).expanduser())
    train_indices, val_indices = stratified_split(pool.labels.numpy(), val_size, seed)
    train, val = pool.subset(train_indices), pool.subset(val_indices)
    mean, std = channel_statistics(train.images)
    return DataSplits(
        chosen.name, chosen.classes, train, val, test, mean, std, chosen.crop_padding, chosen.flip,
        _digest((train, val, test)), chosen.note,
    )  # fmt: skip


def stratified_split(
    labels: npt.ArrayLike, val_size: float, seed: int, *, purpose: str = "validation split"
) -> tuple[IntArray, IntArray]:
    """Return the indices of training and of validation samples, with equal class proportions.

    Parameters
    ----------
    labels : array-like of int, shape (N,)
        Class of every sample.
    val_size : float
        Share of validation samples, between 0 and 1; there are round(val_size * N) of them. Each
        class gives its exact share rounded down, and those with the largest remainders one more;
        ties are broken at random.
    seed : int
        Seed of the random choices.
    purpose : str
        Splits for different purposes are drawn independently.

    Returns
    -------
    train, val : int64 arrays
        Indices, in ascending order.

    Raises
    ------
    DataError
        If `val_size` leaves one of the two empty.
    ValueError
        If the seed is not an integer.
    """
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    total = len(classes)
    number = isinstance(val_size, int | float) and not isinstance(val_size, bool)
    if not number or not 0 < val_size < 1 or not 0 < round(val_size * total) < total:
        raise DataError(
            f"val_size must be between 0 and 1 and leave at least one of the {total} images for "
            f"training and for validation, got {val_size!r}"
        )
    rng = numpy_generator(purpose, checked_seed(seed))
    taken = _apportion(np.bincount(classes), round(val_size * total), rng)
    is_val = np.zeros(total, dtype=bool)
    for c, count in enumerate(taken):
        is_val[rng.permutation(np.flatnonzero(classes == c))[:count]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def _apportion(counts: IntArray, number: int, rng: np.random.Generator) -> IntArray:
    """Return shares of `number` in proportion to `counts`, by the largest remainder method."""
    shares, remainders = np.divmod(counts * number, counts.sum())
    order = np.lexsort((rng.random(len(counts)), -remainders))
    shares[order[: number - int(shares.sum())]] += 1
    return shares


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images, where 255 is 1.

    The order of the images does not matter, because the float64 sums are exact.
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
    std[std == 0] = 255.0  # a channel that is the same everywhere is not stretched
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _digest(splits: tuple[ImageSet, ...]) -> str:
    """Return the sha256 of the shapes, images and labels."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        digest.update(split.images.contiguous().numpy().data)
        digest.update(split.labels.contiguous().numpy().data)
    return digest.hexdigest()
