"""The files of CIFAR-100 as torchvision knows them, which are downloaded if missing."""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity, extract_archive

from fedta_app.data.sets.base import ImageSet
from fedta_app.errors import DataError


class _CheckedBefore(CIFAR100):  # type: ignore[misc]
    """The other part of files whose md5 sums torchvision checked, all of them, for the first."""

    def _check_integrity(self) -> bool:
        return True


def read_cifar100(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images.

    Raises
    ------
    DataError
        If files are damaged, cannot be read, or are missing and cannot be downloaded.
    """
    try:
        return _read(data_dir)
    except RuntimeError:  # torchvision raises it for missing and for damaged files
        for name, md5 in _md5_sums().items():
            _refuse_damaged(data_dir / CIFAR100.base_folder / name, md5)
    except OSError as error:
        raise DataError(f"CIFAR-100 in {data_dir} cannot be read ({error})") from error
    _fetch(data_dir)
    return _read(data_dir)


def _read(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return the images of both parts; torchvision checks the md5 sums before it unpickles."""
    with warnings.catch_warnings():
        # NumPy 2.4 warns of the old pickles
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        raw = CIFAR100(data_dir, train=True), _CheckedBefore(data_dir, train=False)
    pool, test = (
        ImageSet(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(part.targets, dtype=torch.int64),
        )
        for part in raw
    )
    return pool, test


def _md5_sums() -> dict[str, str]:
    """Return the md5 sum of every file that torchvision needs."""
    meta = (CIFAR100.meta["filename"], CIFAR100.meta["md5"])
    return dict((*CIFAR100.train_list, *CIFAR100.test_list, meta))


def _refuse_damaged(file: Path, md5: str) -> None:
    """Raise DataError if the file exists with another md5 sum."""
    if file.exists() and not check_integrity(file, md5):
        raise DataError(f"{file} is damaged (its md5 sum is not {md5}): delete or replace it")


def _fetch(data_dir: Path) -> None:
    """Unpack the archive in `data_dir`, or download it; no file is ever there in part."""
    folder, archive = data_dir / CIFAR100.base_folder, data_dir / CIFAR100.filename
    _refuse_damaged(archive, CIFAR100.tgz_md5)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".cifar100-", dir=data_dir) as temporary:
            if archive.exists():
                extract_archive(archive, temporary)
            else:
                CIFAR100(temporary, download=True)
            folder.mkdir(exist_ok=True)
            for name in _md5_sums():
                os.replace(Path(temporary, CIFAR100.base_folder, name), folder / name)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataError(
            f"CIFAR-100 is not in {data_dir} and could not be fetched ({error}): put the files "
            f"{', '.join(_md5_sums())} into {folder}, or {archive.name} into {data_dir}"
        ) from error
