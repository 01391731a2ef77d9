"""A cache on disk of arrays that depend only on a key, shared by all runs on a machine.

An entry is a folder with `array.npy`, which is mapped into memory, and `entry.json`: the key and
the sha256 of the array. An entry is written beside its place and renamed, so that a crash leaves
none; one process computes it while others wait for its lock. An entry whose hash does not fit is
computed again. The entries that were not used for longest are deleted when a new one would make the
folder larger than its limit.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from fedta_app.files import file_sha256, remove_tree, write_atomically
from fedta_app.hashed_files import sha256_of

Array = npt.NDArray[Any]
_HEADER = 128  # bytes before the values in a .npy file
_ARRAY, _ABOUT = "array.npy", "entry.json"


@dataclass(frozen=True)
class Entry:
    """An entry of the cache: its folder, its key, its size in bytes and when it was last used."""

    folder: Path
    key: dict[str, Any]
    num_bytes: int
    used: float


class ArrayCache:
    """A folder of cached arrays.

    Parameters
    ----------
    folder : Path or None
        Where the entries are; with None nothing is kept, and arrays are computed in memory.
    limit : float
        Largest size of all entries together, in bytes.

    An array that is larger than the limit, or than the free space of the disk, is computed in
    memory, with a line that says so.

    Examples
    --------
    >>> cache = ArrayCache(None, 0)
    >>> def fill(array):
    ...     array[:] = 7
    >>> cache.array({"kind": "sevens"}, (3,), "float32", fill).tolist()
    [7.0, 7.0, 7.0]
    """

    def __init__(self, folder: Path | None, limit: float) -> None:
        self._folder = folder
        self._limit = limit

    def array(
        self,
        key: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: str,
        fill: Callable[[Array], None],
    ) -> Array:
        """Return the array of a key: mapped from disk, after it has been computed if need be.

        Parameters
        ----------
        key : mapping
            JSON values: everything that decides the array's values. `kind` begins its file name.
        fill : callable
            Computes the array, in place.
        """
        if self._folder is None:
            return _in_memory(shape, dtype, fill)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize + _HEADER
        text = json.dumps({**key, "shape": shape, "dtype": dtype}, sort_keys=True)
        key = json.loads(text)  # as it is read back
        name = f"{key.get('kind', 'array')}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        entry = self._folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._sound(entry, key):
            with FileLock(self._folder / f".{name}.lock"):
                there = self._sound(entry, key)  # computed while this process waited
                if not there and self._make_room(size):
                    there = self._compute(entry, key, shape, dtype, fill)
            if not there:
                return _in_memory(shape, dtype, fill)
        with suppress(OSError):  # of another user, or read-only: it only decides what goes first
            os.utime(entry / _ABOUT)
        try:
            found: Array = np.load(entry / _ARRAY, mmap_mode="c")
        except FileNotFoundError:  # another process made room just now
            return self.array(key, shape, dtype, fill)
        return found

    def entries(self) -> list[Entry]:
        """Return the entries, the one that was not used for longest first."""
        found = []
        for path in self._folder.glob(f"*/{_ABOUT}") if self._folder else ():
            try:
                key = json.loads(path.read_text())["key"]
                size = (path.parent / _ARRAY).stat().st_size
                found.append(Entry(path.parent, key, size, path.stat().st_mtime))
            except (OSError, ValueError, KeyError, TypeError):
                found.append(Entry(path.parent, {"kind": "damaged"}, 0, 0.0))
        return sorted(found, key=lambda entry: entry.used)

    def clear(self) -> None:
        """Delete all entries; a run that has one mapped keeps what it mapped."""
        for entry in self.entries():
            remove_tree(entry.folder)

    def _sound(self, entry: Path, key: Mapping[str, Any]) -> bool:
        try:
            about = json.loads((entry / _ABOUT).read_text())
            return bool(about["key"] == key and about["sha256"] == sha256_of(entry / _ARRAY))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _compute(
        self,
        entry: Path,
        key: Mapping[str, Any],
        shape: tuple[int, ...],
        dtype: str,
        fill: Callable[[Array], None],
    ) -> bool:
        """Compute an entry; return whether the disk has the room for it."""
        temporary = entry.with_name(f".{entry.name}.tmp")
        remove_tree(temporary)  # of a process that died; only the holder of the lock comes here
        remove_tree(entry)
        temporary.mkdir()
        file = temporary / _ARRAY
        try:
            array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
            if refused := _reserve(file):
                _say_not_cached(array.nbytes, f"the disk of {entry.parent} takes ({refused})")
                return False
            fill(array)
            array.flush()
            del array
            about = {"key": dict(key), "sha256": file_sha256(file)}
            write_atomically(temporary / _ABOUT, json.dumps(about, indent=1) + "\n")
            temporary.replace(entry)
        finally:
            remove_tree(temporary)
        return True

    def _make_room(self, size: int) -> bool:
        """Delete the oldest entries until one of `size` bytes fits; return whether it can."""
        assert self._folder is not None
        if size > self._limit:
            what = f"the limit of {self._limit / 1e9:g} GB (cache-gb)"
        else:
            entries = self.entries()
            total = sum(entry.num_bytes for entry in entries) + size
            for entry in entries:
                if total <= self._limit:
                    break
                remove_tree(entry.folder)
                total -= entry.num_bytes
            free = shutil.disk_usage(self._folder).free
            if size <= free:
                return True
            what = f"the {free / 1e9:.1f} GB that are free in {self._folder}"
        _say_not_cached(size, what)
        return False


def _reserve(file: Path) -> str:
    """Have the disk keep room for all of a sparse file; return why it does not, if so.

    Writing into a mapped file where there is none kills the process: other processes may have
    taken what was free, or there is a quota.
    """
    if not hasattr(os, "posix_fallocate"):
        return ""
    with file.open("r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return error.strerror or str(error)
    return ""  # other errors are of file systems that cannot reserve


def _say_not_cached(size: int, what: str) -> None:
    print(
        f"not cached, but computed in the memory of every process: {size / 1e9:.1f} GB are "
        f"more than {what}",
        flush=True,
    )


def _in_memory(shape: tuple[int, ...], dtype: str, fill: Callable[[Array], None]) -> Array:
    array = np.empty(shape, dtype)
    fill(array)
    return array
