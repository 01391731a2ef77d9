"""Loading a data set, and splitting it into training, validation and test examples."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedta_app.data.sets import DATASETS
from fedta_app.data.sets.base import Dataset, ImageSet, IntArray
from fedta_app.errors import DataError, PartitionError
from fedta_app.seeding import checked_seed, numpy_generator

__all__ = [
    "DATASETS",
    "DataSplits",
    "ImageSet",
    "channel_statistics",
    "draw_clients",
    "load_data",
    "load_side",
]

_IN_CACHE = 2**17  # float64 numbers, 1 MiB: sums over more of them wait for the memory


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
        Of each channel over the images of `train`, in the scale where 255 is 1; empty for text.
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
    alphabet : str
        Of text, the characters at the positions that stand for them; else empty.
    class_names : tuple of str
        Of an image folder, in the order of the labels; else empty.
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
    alphabet: str = ""
    class_names: tuple[str, ...] = ()

    @property
    def names_sha256(self) -> str:
        """The sha256 (hexadecimal) of the names of the classes in their order."""
        return hashlib.sha256("/".join(self.class_names).encode()).hexdigest()

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
    folder = Path(data_dir).expanduser()
    pool, test = chosen.load(folder)
    if chosen.split is None:
        train_indices, val_indices = stratified_split(pool.labels.numpy(), val_size, seed)
    else:
        train_indices, val_indices = chosen.split(pool, val_size)
    train, val = pool.subset(train_indices), pool.subset(val_indices)
    mean, std = ((), ()) if chosen.alphabet else channel_statistics(train.images)
    note = chosen.note if isinstance(chosen.note, str) else chosen.note(folder)
    return DataSplits(
        chosen.name, chosen.classes, train, val, test, mean, std, chosen.crop_padding, chosen.flip,
        _digest((train, val, test)), note, chosen.alphabet, chosen.class_names,
    )  # fmt: skip


def load_side(dataset: Dataset, data_dir: str | Path, *, of_node: bool) -> DataSplits:
    """Return the images of a node, which are all for training, or of the server, of which none is.

    So it is where each node has images of its own: what the server has for training and validation
    is for validation. No side can know the mean of all images, and every side needs the same: the
    mean and the standard deviation of each channel are 0.5.

    Raises
    ------
    DataError
        If files are missing or damaged.
    """
    pool, test = dataset.load(Path(data_dir).expanduser())
    nothing = pool.subset([])
    train, val, test = (pool, nothing, nothing) if of_node else (nothing, pool, test)
    half = (0.5,) * pool.images.shape[1]
    note = dataset.note if isinstance(dataset.note, str) else ""
    return DataSplits(
        dataset.name, dataset.classes, train, val, test, half, half, dataset.crop_padding,
        dataset.flip, _digest((train, val, test)), note, class_names=dataset.class_names,
    )  # fmt: skip


def draw_clients(data: DataSplits, num_clients: int, seed: int) -> DataSplits:
    """Return the examples of some natural clients, drawn from all that have training examples.

    Validation and test examples are theirs too. The clients are numbered anew from 0, in the order
    of their old numbers.

    Parameters
    ----------
    data : DataSplits
        With the `clients` of each example.
    num_clients : int
        K, at most all of them.
    seed : int
        Seed of the draw.

    Raises
    ------
    PartitionError
        If the data set has no natural clients or fewer than K, or those that were drawn have no
        example for validation or for test.
    """
    if data.train.clients is None:
        raise PartitionError(f"partition 'natural' is not possible: {data.name} has no clients")
    there = data.train.clients.unique().numpy()
    if not 1 <= num_clients <= len(there):
        raise PartitionError(
            f"num_clients must be an integer between 1 and the {len(there)} natural clients of "
            f"{data.name}, got {num_clients!r}"
        )
    rng = numpy_generator("natural clients", checked_seed(seed))
    drawn = torch.from_numpy(np.sort(rng.permutation(there)[:num_clients]))
    train, val, test = (_of_clients(part, drawn) for part in (data.train, data.val, data.test))
    for part, what in ((val, "validation"), (test, "test")):
        if not len(part):
            raise PartitionError(
                f"num_clients = {num_clients} is not enough: the natural clients that seed {seed} "
                f"draws of {data.name} have no {what} examples"
            )
    return replace(data, train=train, val=val, test=test, digest=_digest((train, val, test)))


def _of_clients(part: ImageSet, drawn: Tensor) -> ImageSet:
    """Return the examples of clients by their ascending numbers, numbered anew from 0."""
    assert part.clients is not None
    kept = part.subset(torch.isin(part.clients, drawn).nonzero()[:, 0])
    assert kept.clients is not None
    return replace(kept, clients=torch.searchsorted(drawn, kept.clients))


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
    some = max(1, _IN_CACHE // max(1, images[:1].numel()))
    for chunk in torch.split(images, some):
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
