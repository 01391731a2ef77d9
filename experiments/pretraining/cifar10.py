"""CIFAR-10's images, whose classes are disjoint from those of CIFAR-100, to pre-train on."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from fedta_app.data.loading import ImageSet
from fedta_app.errors import DataError

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
    return train, test, f"CIFAR-10, images in one folder per class ({_kinds(folder)})"


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
    classes = sorted(entry.name for entry in folder.glob("*") if entry.is_dir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for file in sorted((folder / name).glob("*")):
            images.append(_read_image(file))
            labels.append(label)
    if len(classes) < 2:
        raise DataError(f"{folder} is not a folder with one folder of images per class")
    return _image_set(np.stack(images), labels), classes


def _read_image(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{file} cannot be read as an image ({error})") from error
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{file} is not 32 pixels wide and high")
    return pixels


def _image_set(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], labels: list[int]
) -> ImageSet:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(labels, dtype=torch.int64))


def _kinds(folder: Path) -> str:
    kinds = {file.suffix.lower().lstrip(".") for file in folder.glob("*/*/*")}
    return ", ".join(sorted(kinds))
