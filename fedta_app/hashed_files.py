"""Files that are hashed in a thread of their own while they are read or written, without copies.

What a run stores is as large as the model: the weights of a checkpoint in every round, and what
clients keep, which each client of a round reads and writes. Their sha256 takes as long as the disk,
so a file that this process has hashed before is hashed again only if it has changed since.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedta_app.files import file_sha256, write_atomically

_PIECE = 2**23  # bytes that are read or written while those before them are hashed


def write_hashed(
    path: Path, parts: Iterable[bytes | memoryview], *, named_by_hash: bool = False
) -> str:
    """Write parts one after the other, atomically, and return the sha256 of the file.

    Parameters
    ----------
    named_by_hash : bool
        The file gets its sha256 as its name, in the folder of `path`.

    Raises
    ------
    OSError
        As `write_atomically` does.
    """
    with _Hash() as found:
        write_atomically(
            path,
            (found.take(piece) for part in parts for piece in _pieces(memoryview(part))),
            name=found.hexdigest if named_by_hash else None,
        )
    digest = found.hexdigest()
    written = path.with_name(digest) if named_by_hash else path
    with suppress(OSError):  # another process may have removed it
        _remember(written, _version(written.stat()), digest)
    return digest


class ReadBuffer:
    """Memory for one file after the other of the same size.

    New memory of the size of a model costs page faults, which take longer than to read it.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def take(self, size: int) -> memoryview:
        """Return so many bytes: those of the call before, unless somebody still holds them."""
        mine = 2  # references: this object's, and that of the call
        if self._memory.size != size or sys.getrefcount(self._memory) > mine:
            self._memory = np.empty(size, np.uint8)
        return self._memory.data


def read_hashed(path: Path, buffer: ReadBuffer | None = None) -> tuple[memoryview, str]:
    """Return the bytes of a file, in memory that the caller may write to, and their sha256.

    Parameters
    ----------
    buffer : ReadBuffer, optional
        Whose memory it is; by default it is new.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    with path.open("rb") as stream:
        version = _version(os.fstat(stream.fileno()))
        data = (buffer or ReadBuffer()).take(version.size)
        known = _known(path, version)
        if known and stream.readinto(data) == version.size:
            return data, known
        stream.seek(0)
        with _Hash() as found:
            for piece in _pieces(data):
                found.take(piece[: stream.readinto(piece)])
    digest = found.hexdigest()
    _remember(path, version, digest)
    return data, digest


def sha256_of(path: Path) -> str:
    """Return the sha256 (hexadecimal) of a file that need not be read otherwise.

    Raises
    ------
    OSError
        When it cannot be read.
    """
    version = _version(path.stat())
    if known := _known(path, version):
        return known
    digest = file_sha256(path)
    _remember(path, version, digest)
    return digest


def json_sha256(values: Mapping[str, Any]) -> str:
    """Return the sha256 (hexadecimal) of values as JSON, whatever the order of their names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class _Version(NamedTuple):
    """What differs between two versions of a file."""

    inode: int
    size: int
    changed: int


_HASHES: dict[Path, tuple[_Version, str]] = {}  # of files that were read or written
_MOST_HASHES = 10_000


def _version(stat: os.stat_result) -> _Version:
    return _Version(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _known(path: Path, version: _Version) -> str:
    """Return the hash of this version of a file, empty if it is not known."""
    then, digest = _HASHES.get(path, (None, ""))
    return digest if then == version else ""


def _remember(path: Path, version: _Version, digest: str) -> None:
    """Keep a hash; forget all at once where they have become too many."""
    if len(_HASHES) >= _MOST_HASHES:
        _HASHES.clear()
    _HASHES[path] = version, digest


class _Hash:
    """The sha256 of pieces of bytes, taken in a thread while the caller does something else."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "_Hash":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def take(self, piece: memoryview) -> memoryview:
        """Begin to hash a piece, after those before it, and return it."""
        self._thread.submit(self._hash.update, piece)
        return piece

    def hexdigest(self) -> str:
        """Wait, and return the digest; nothing can be taken any more."""
        self._thread.shutdown()
        return self._hash.hexdigest()


def _pieces(data: memoryview) -> Iterator[memoryview]:
    """Yield the bytes in pieces."""
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]
