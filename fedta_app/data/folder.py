"""Images of your own, in the layout of torchvision's ImageFolder: a data set by its path.

    photos/train/cat/*.jpg    photos/train/dog/*.jpg    for training and validation
    photos/test/cat/*.jpg     photos/test/dog/*.jpg     for test

Classes are the folders in `train`, in the order of their names. Without `test`, the images in `val`
are for test; without both, a fifth of those in `train`, the same for every seed. With both, those
in `val` join the others, from which the validation images of a run are drawn.

Where nodes train on images of their own (``partition = "nodes"``), the folder of a node has `train`
alone, with a folder for every class that the server's has; some of them may be empty.

Listing the folder is quick, and finds what is wrong with it before any image is read.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fedta_app.cache import ArrayCache
from fedta_app.data.decoding import read_images
from fedta_app.data.loading import stratified_split
from fedta_app.data.sets.base import Dataset, ImageSet
from fedta_app.errors import DataError

FOLDER = "folder"  # the value of the key `dataset`
TEST_SHARE = 0.2
NO_CACHE = ArrayCache(None, 0)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_SPLITS = ("train", "val", "test")


def image_folder(
    path: Path, size: int, cache: ArrayCache = NO_CACHE, *, of_node: bool = False
) -> Dataset:
    """Return the data set of a folder, from its listing; the images are read by `Dataset.load`.

    Parameters
    ----------
    path : Path
        The folder with `train`, and with `test` or `val` if there are such.
    size : int
        Height and width in pixels that every image gets (see `fedta_app.data.decoding.decode`).
    cache : ArrayCache
        Where decoded images are kept; by default, they are decoded at every load.
    of_node : bool
        Whether these are the images of one node, which are all for training.

    Raises
    ------
    DataError
        If the folder has no classes, a class no images, or the images do not fit into memory.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from fedta_app.data import image_folder, load_data
    >>> root = Path(tempfile.mkdtemp())
    >>> for number, colour in enumerate(["red", "green", "blue"] * 10):
    ...     folder = root / "colours" / "train" / colour
    ...     folder.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (40, 30), colour).save(folder / f"{number}.png")
    >>> dataset = image_folder(root / "colours", size=16)
    >>> dataset.classes, dataset.images
    (3, 24)
    >>> data = load_data(dataset, root, val_size=0.25, seed=0)
    colours: decoding 30 images to 16 x 16 pixels
    >>> data.train.images.shape, len(data.val), len(data.test)
    (torch.Size([18, 3, 16, 16]), 6, 6)
    """
    listing = _list(path, of_node)
    files = [*listing.pool, *listing.test]
    _refuse_too_many(path, len(files), size)

    def load(_: Path) -> tuple[ImageSet, ImageSet]:
        images = read_images(path, [file.path for file in files], size, cache)
        everything = ImageSet(images, torch.tensor([file.label for file in files]))
        positions = torch.arange(len(files))
        split = len(listing.pool)
        if listing.test or of_node:
            return everything.subset(positions[:split]), everything.subset(positions[split:])
        pool, test = stratified_split(everything.labels.numpy(), TEST_SHARE, 0, purpose="test")
        return everything.subset(pool), everything.subset(test)

    taken = 0 if listing.test or of_node else round(TEST_SHARE * len(listing.pool))
    return Dataset(
        FOLDER, len(listing.classes), len(listing.pool) - taken, load, crop_padding=size // 8,
        flip=True, note=f"{path.name}: {len(listing.classes)} classes; {listing.note}",
        class_names=tuple(listing.classes),
    )  # fmt: skip


@dataclass(frozen=True)
class _File:
    path: Path
    label: int


@dataclass(frozen=True)
class _Listing:
    """The files of a folder in a fixed order: for training and validation, and for test."""

    classes: list[str]
    pool: list[_File]
    test: list[_File]
    note: str


def _list(path: Path, of_node: bool) -> _Listing:
    try:
        return _read_listing(path, of_node)
    except OSError as error:
        raise DataError(f"{path} cannot be listed ({error})") from error


def _read_listing(path: Path, of_node: bool) -> _Listing:
    if not path.is_dir():
        raise DataError(
            f"there is no folder {path}: image-folder is the name of a folder in data-dir, or an "
            "absolute path"
        )
    folders = [entry.name for entry in _folders(path)]
    if "train" not in folders:
        found = ", ".join(folders[:5]) or "nothing"
        raise DataError(
            f"{path} has no folder train, which holds a folder of images for each class (it has "
            f"{found})"
        )
    classes = [entry.name for entry in _folders(path / "train")]
    if len(classes) < 2:
        found = f"one class, {classes[0]}" if classes else "no class folders"
        raise DataError(f"{path / 'train'} has {found}: a classifier needs two or more classes")
    for name in classes:  # names go into records, and from node to node, as UTF-8
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path / 'train'} has a class folder whose name is not UTF-8, "
                f"{os.fsencode(name)!r}: rename it"
            ) from error
    files, left_out = {}, [name for name in folders if name not in _SPLITS]
    for split in _SPLITS[:1] if of_node else _SPLITS:
        if split in folders:
            files[split], others = _split(path / split, classes, some_empty=of_node)
            left_out += others
    test_split = next((split for split in ("test", "val") if split in files), None)
    test = files.pop(test_split) if test_split else []
    pool = [file for split in files.values() for file in split]
    note = f"training and validation images from {' and '.join(files)}, test images "
    note += f"from {test_split}" if test_split else f"are {TEST_SHARE:.0%} of them, for every seed"
    if of_node:
        note = "all images of a node are for training"
    if left_out:
        note += f"; left out, as no images of a class: {', '.join(left_out[:3])}"
        note += f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return _Listing(classes, pool, test, note)


def _folders(path: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones (`.ipynb_checkpoints`)."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _split(
    path: Path, classes: list[str], *, some_empty: bool = False
) -> tuple[list[_File], list[str]]:
    """Return the images of a split, and the names of files that are not images of a class."""
    found = [entry.name for entry in _folders(path)]
    if unknown := [name for name in found if name not in classes]:
        raise DataError(
            f"{path} has a class {unknown[0]} that {path.parent / 'train'} lacks: every class "
            "needs images for training"
        )
    left_out = [entry.name for entry in sorted(path.iterdir()) if _is_other(entry)]
    files = []
    for name in found:
        inside = list(_files(path / name, set()))
        images = [file for file in inside if file.suffix.lower() in _SUFFIXES]
        if not images and path.name == "train" and not some_empty:
            kinds = ", ".join(sorted(_SUFFIXES))
            raise DataError(
                f"the class folder {path / name} has no images: put some there ({kinds}), or "
                "remove it"
            )
        left_out += [file.name for file in inside if file.suffix.lower() not in _SUFFIXES]
        files += [_File(file, classes.index(name)) for file in images]
    if not files:
        raise DataError(f"{path} has no images: put some there, or remove it")
    return files, left_out


def _is_other(entry: Path) -> bool:
    return entry.name[0] != "." and not entry.is_dir()


def _files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files in a folder and below it by name, without hidden ones.

    Links are followed, but into no folder that is being listed: such a loop has no end.
    """
    status = os.stat(folder)
    this = (status.st_dev, status.st_ino)
    if this in seen:
        return
    for entry in sorted(folder.iterdir()):
        if entry.name[0] == ".":
            continue
        if entry.is_dir():
            yield from _files(entry, seen | {this})
        else:
            yield entry


def _refuse_too_many(path: Path, number: int, size: int) -> None:
    """Raise DataError if the decoded images are larger than the memory of this machine."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = number * 3 * size**2
    if needed > memory:
        raise DataError(
            f"{path} has {number:,} images, which take {needed / 1e9:,.1f} GB of memory at "
            f"{size} x {size} pixels where there are {memory / 1e9:,.1f} GB: use fewer images, or "
            "a smaller image-size"
        )
