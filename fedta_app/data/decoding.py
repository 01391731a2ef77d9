"""Decoding image files to one size, once on a machine: what was decoded is kept in a file."""

import hashlib
import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedta_app.errors import DataError, first_line

_PROGRESS_SECONDS = 10.0
Pixels = npt.NDArray[np.uint8]


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


def read_images(folder: Path, files: Sequence[Path], size: int, cache: Path) -> Tensor:
    """Return the images of files as uint8 (N, 3, size, size).

    They are read from `cache` if they were decoded before; a file that is new or changed since then
    (its size or a time stamp differs) decodes all of them again, and so does a damaged entry.

    Parameters
    ----------
    folder : Path
        Where the files are; what is kept is named after it.
    files : sequence of Path
        Of the images, in the order of the result.
    size : int
        Height and width in pixels; see `decode`.
    cache : Path
        Folder for what was decoded; if it cannot be written, the images stay in memory.

    Raises
    ------
    DataError
        If a file cannot be read as an image.
    """
    where = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]
    path = cache / f"{folder.name}-{where}-{size}px.safetensors"
    fingerprint = _fingerprint(folder, files)
    if (kept := _kept(path, fingerprint)) is not None:
        return kept
    images = _decode_all(folder.name, files, size)
    facts = {"files": fingerprint, "sha256": _sha256(images)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": images}, temporary, metadata=facts)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        print(f"warning: decoded images are not kept: {first_line(error)}", flush=True)
        return images
    kept = _kept(path, fingerprint)  # mapped from the file, which processes share
    return images if kept is None else kept


def _fingerprint(folder: Path, files: Sequence[Path]) -> str:
    """Return a sha256 that changes with every file that is added, removed, renamed or written."""
    digest = hashlib.sha256(f"1 {PIL.__version__}\n".encode())
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror})") from error
        times = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        name = os.fsencode(file.relative_to(folder))
        digest.update(name + f"\0{times}\n".encode())
    return digest.hexdigest()


def _kept(path: Path, fingerprint: str) -> Tensor | None:
    """Return the images of an entry, or None if there is none, or it is damaged or of old files."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("files") != fingerprint:
                return None
            images: Tensor = file.get_tensor("images")
    except (OSError, SafetensorError):
        return None
    return images if facts.get("sha256") == _sha256(images) else None


def _sha256(images: Tensor) -> str:
    return hashlib.sha256(images.numpy().data).hexdigest()


def _decode_all(name: str, files: Sequence[Path], size: int) -> Tensor:
    """Decode the files with all CPUs, and say how far that is."""
    print(
        f"{name}: decoding {len(files):,} images to {size} x {size} pixels, once on this machine",
        flush=True,
    )
    images = np.empty((len(files), 3, size, size), dtype=np.uint8)
    began = said = time.monotonic()

    def place(number: int) -> None:
        images[number] = decode(files[number], size)

    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow lets other threads work while it decodes
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of what it reads nevertheless
            for done, _ in enumerate(pool.map(place, range(len(files))), start=1):
                now = time.monotonic()
                if now - said > _PROGRESS_SECONDS:
                    said = now
                    left = timedelta(seconds=round((now - began) / done * (len(files) - done)))
                    print(f"{name}: {done:,} of {len(files):,} images, {left} left", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(images)
