"""Decoding image files to one size; decoded images are kept in the cache of the machine."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fedta_app.cache import ArrayCache
from fedta_app.device.cpus import usable_cpus
from fedta_app.errors import DataError, first_line
from fedta_app.files import file_sha256
from fedta_app.progress import counting, phase

Pixels = npt.NDArray[np.uint8]
_CODE = file_sha256(Path(__file__))


def decode(path: Path, size: int) -> Pixels:
    """Return the image of a file as (3, size, size): red, green and blue.

    It is turned upright as its EXIF data say, cut to the largest square around its centre, and
    resized with bicubic, anti-aliased interpolation. Grey images get three equal channels, 16 bits
    become 8, and transparent parts become white. Of several frames the first is taken; colour
    profiles are not applied.

    Raises
    ------
    DataError
        If the file cannot be read as an image; the sentence names it.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "grey.png"
    >>> Image.new("L", (40, 30), 7).save(file)
    >>> decode(file, 2).tolist()
    [[[7, 7], [7, 7]], [[7, 7], [7, 7]], [[7, 7], [7, 7]]]
    """
    try:
        with Image.open(path) as opened:
            image = _as_rgb(ImageOps.exif_transpose(opened))
        square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders raise errors of many types
        reason = first_line(error)
        raise DataError(
            f"{path} cannot be read as an image ({reason}): replace or remove it"
        ) from error
    return np.asarray(square).transpose(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode in the mode RGB."""
    if image.mode[0] in "IF":  # PIL's own conversion cuts everything above 255
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels are not numbers of 8 or 16 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_images(folder: Path, files: Sequence[Path], size: int, cache: ArrayCache) -> Tensor:
    """Return the images of files as uint8 (N, 3, size, size), from the cache if they are there.

    A file that is new or changed (its size or a time stamp differs) decodes all of them again.

    Parameters
    ----------
    folder : Path
        Where the files are.
    files : sequence of Path
        Of the images, in the order of the result.
    size : int
        Height and width in pixels; see `decode`.
    cache : ArrayCache
        Where decoded images are kept.

    Raises
    ------
    DataError
        If a file cannot be read as an image.
    """
    key = {"kind": "images", "folder": folder.name, "files": _fingerprint(folder, files)}

    def fill(images: Pixels) -> None:
        _decode_all(folder.name, files, images)

    return torch.from_numpy(cache.array(key, (len(files), 3, size, size), "uint8", fill))


def _fingerprint(folder: Path, files: Sequence[Path]) -> str:
    """Return a sha256 that changes with every file that is added, removed, renamed or written.

    So it does with Pillow's version, and with the code of this file.
    """
    digest = hashlib.sha256(f"{_CODE} {PIL.__version__}\n".encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror})") from error
        times = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        name = os.fsencode(file.relative_to(folder))
        digest.update(name + f"\0{times}\n".encode())
    return digest.hexdigest()


def _decode_all(name: str, files: Sequence[Path], images: Pixels) -> None:
    """Decode the files into images (N, 3, size, size) with all CPUs."""
    size = images.shape[-1]
    print(f"{name}: decoding {len(files):,} images to {size} x {size} pixels", flush=True)

    def place(number: int) -> None:
        images[number] = decode(files[number], size)

    pool = ThreadPoolExecutor(usable_cpus())  # Pillow lets other threads work while it decodes
    try:
        with (
            phase(f"decoding {name}"),
            counting("images", len(files)) as count,
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", module="PIL")  # of what it reads nevertheless
            for _ in pool.map(place, range(len(files))):
                count.add()
    finally:
        pool.shutdown(cancel_futures=True)
