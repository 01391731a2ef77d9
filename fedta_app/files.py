"""Files that are either the old version or the new one, whatever happens while they are written."""

import hashlib
import os
import shutil
from pathlib import Path


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file through a temporary neighbour, flushed to disk before it takes the name."""
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, where the system knows how."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it; one that is not there is fine."""
    shutil.rmtree(path, ignore_errors=True)
