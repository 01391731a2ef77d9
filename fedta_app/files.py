"""Reading, writing, hashing and removing files; an interrupted write leaves the old file whole."""

import errno
import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fedta_app.errors import ConfigError, disk_sentence

_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def write_atomically(
    path: Path,
    data: bytes | str | Iterable[bytes | memoryview],
    *,
    name: Callable[[], str] | None = None,
) -> None:
    """Write a temporary file in the same folder, flush it to disk, and rename it to `path`.

    Parameters
    ----------
    data : bytes or str, or iterable of bytes
        The content, or pieces of it.
    name : callable, optional
        Returns the file's name in the folder of `path`, where that depends on the content; it is
        called when all of it is written.

    Raises
    ------
    OSError
        Naming `path`. The temporary file is removed, since it may be what fills the disk.
    """
    content = data.encode() if isinstance(data, str) else data
    pieces = (content,) if isinstance(content, bytes) else content
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb", opener=_without_truncating) as stream:
            stream.writelines(pieces)
            stream.truncate()
            stream.flush()
            _flush_to_disk(stream.fileno())
        temporary.replace(path if name is None else path.with_name(name()))
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def temporary_of(path: Path) -> Path:
    """Return the file that `write_atomically` writes before it becomes `path`.

    One that is there already is written over: its place on the disk, and in memory before that, is
    then used again, which takes half the time of new ones.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _without_truncating(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def remove_temporary(*folders: Path) -> None:
    """Remove the temporary files that a crash left in folders, and the folders of such a name."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def unless_refused() -> Iterator[None]:
    """Print a warning, and go on, when the disk refuses what the block writes: a figure, say."""
    try:
        yield
    except OSError as error:
        print(f"warning: {disk_sentence(error)}; it is left out", flush=True)


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk; only POSIX systems can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def _flush_to_disk(descriptor: int) -> None:
    """Flush a file or folder, where the file system knows how: some network ones do not."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


def expanded(text: str | Path, said: str) -> Path:
    """Return the absolute path of a file or folder, in which `~` is somebody's home.

    Parameters
    ----------
    said : str
        What the user wrote, such as "results-dir = '~x'"; it begins the message of an error.

    Raises
    ------
    ConfigError
        When there is no such home, or no such working directory.
    """
    if "\0" in str(text):
        raise ConfigError(f"{said} is not allowed: a path has no NUL character")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        home = Path(text).parts[0]
        raise ConfigError(
            f"{said} is not allowed: there is no home folder {home} on this machine; give an "
            "absolute path" + (", or set HOME" if home == "~" else "")
        ) from error
    except OSError as error:
        raise ConfigError(f"{said} is not allowed: the working directory is gone") from error


def as_folder(text: str | Path, said: str) -> Path:
    """Return the absolute path of a folder that exists, or that can be made.

    Parameters
    ----------
    said : str
        As for `expanded`.

    Raises
    ------
    ConfigError
        When there is something else in its place.
    """
    path = expanded(text, said)
    try:
        nearest = next(place for place in (path, *path.parents) if place.exists())
        is_folder = nearest.is_dir()
    except OSError as error:  # a name that is too long, a place that is closed
        raise ConfigError(
            f"{said} is not allowed: it cannot be a folder ({error.strerror})"
        ) from error
    if not is_folder:
        raise ConfigError(f"{said} is not allowed: {nearest} is not a folder")
    return path


def file_sha256(path: Path) -> str:
    """Return the sha256 (hexadecimal) of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    """Remove a folder and its contents, if it exists."""
    shutil.rmtree(path, ignore_errors=True)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a flat TOML file of keys; raise ConfigError in one sentence when that fails."""
    try:
        with path.open("rb") as stream:
            mapping = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML, of its encoding, or of a number that is too long
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return mapping


def editable_checkout() -> Path | None:
    """Return the checkout that the installed package fedta is, None where it is a copy or none."""
    try:
        origin = json.loads(distribution("fedta").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))
