"""CIFAR-10's images, whose classes are disjoint from those of CIFAR-100, to pre-train on."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.folder import default_loader

from fedta_app.data.loading import ImageSet
from fedta_app.errors import DataError

Pixels = npt.NDArray[np.uint8]
FOLDERS = "cifar10"  # beside torchvision's cifar-10-batches-py


def read_cifar10(data_dir: Path) -> tuple[ImageSet, ImageSet, str]:
    """Read training and test images; nothing is downloaded.

    Parameters
    ----------
    data_dir : Path
        Holds `cifar-10-batches-py/` as torchvision unpacks it or, where that is missing, plain
        images in `cifar10/{train,test}/<class>/`.

    Returns
    -------
    train, test : ImageSet
    source : str
        What was read, in words.

    Raises
    ------
    DataError
        If neither is there, or what is there cannot be read.
    """
    if (data_dir / CIFAR10.base_folder).is_dir():
        return (*_read_batches(data_dir), "CIFAR-10, the original files")
    folder = data_dir / FOLDERS
    if not folder.is_dir():
        raise DataError(
            f"CIFAR-10 is not in {data_dir}: put torchvision's {CIFAR10.base_folder}/ there, or "
            f"images in {FOLDERS}/train/<class>/ and {FOLDERS}/test/<class>/"
        )
    train, names = _read_folders(folder / "train")
    test, test_names = _read_folders(folder / "test")
    if names != test_names:
        raise DataError(f"{folder}: train and test hold different classes")
    kinds = {file.suffix.lower().lstrip(".") for file in folder.glob("*/*/*")}
    return train, test, f"CIFAR-10, images in one folder per class ({', '.join(sorted(kinds))})"


def _read_batches(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Read the files of `data_dir`; torchvision checks their md5 sums before it unpickles."""
    try:
        with warnings.catch_warnings():
            # the pickles of 2009 predate a check of NumPy 2.4
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            raw = [CIFAR10(data_dir, train=train, download=False) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # RuntimeError: missing or damaged
        raise DataError(
            f"CIFAR-10 in {data_dir / CIFAR10.base_folder} cannot be read ({error})"
        ) from error
    train, test = (_image_set(part.data, part.targets) for part in raw)
    return train, test


def _read_folders(folder: Path) -> tuple[ImageSet, list[str]]:
    """Read every image below `folder`, in name order, and the names of the classes."""
    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is not a folder with one folder of images per class ({error})"
        ) from error
    images = np.stack([_read_image(Path(file)) for file, _ in found.samples])
    return _image_set(images, found.targets), found.classes


def _read_image(file: Path) -> Pixels:
    try:
        pixels = np.asarray(default_loader(str(file)))
    except OSError as error:
        raise DataError(f"{file} cannot be read as an image ({error})") from error
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{file} is not 32 pixels wide and high")
    return pixels


def _image_set(pixels: Pixels, labels: list[int]) -> ImageSet:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(labels, dtype=torch.int64))
