"""Reading, writing, hashing and removing files; an interrupted write leaves the old file whole."""

import hashlib
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

from fedta_app.errors import ConfigError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a temporary file in the same folder, flush it to disk, and rename it to `path`."""
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk; only POSIX systems can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return mapping
