"""Blobs: immutable byte strings on disk, each named by its sha256.

The head and the masks travel to a client the first time it needs them; after that, messages refer
to them by digest. A client's memory (what an algorithm keeps on it between rounds) is a blob that
the client writes, and whose digest it sends to the server. Since a blob never changes, a resumed
run finds exactly the bytes that its checkpoint refers to.
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path

from fedta_app.errors import NO_RESUME, RunError
from fedta_app.hashed_files import read_hashed, write_hashed

_START_OVER = f"put back what was there, or start the run over ({NO_RESUME})"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of blobs, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, *parts: bytes | memoryview) -> str:
        """Store the bytes, one part after the other, and return their sha256.

        Nothing is written where a single part is there already, and whole.
        """
        if len(parts) == 1:
            digest = hashlib.sha256(parts[0]).hexdigest()
            if self._holds(digest, parts[0]):
                return digest
        self.folder.mkdir(parents=True, exist_ok=True)
        return write_hashed(self.folder / "blob", parts, named_by_hash=True)

    def get(self, digest: str) -> memoryview:
        """Return the bytes of a digest, in memory that the caller may write to.

        Raises
        ------
        RunError
            When they are missing, or do not match their digest.
        """
        if not _DIGEST.fullmatch(digest):  # it may come from another machine
            raise RunError(f"{digest!r} is not the sha256 of a blob")
        path = self.folder / digest
        try:
            data, found = read_hashed(path)
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}): {_START_OVER}") from error
        if found != digest:
            raise RunError(f"{path} is damaged: {_START_OVER}")
        return data

    def keep_only(self, digests: Collection[str]) -> None:
        """Delete all other blobs."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in digests and not path.is_dir():
                    path.unlink(missing_ok=True)

    def discard(self, digest: str) -> None:
        """Delete a blob, if it is there."""
        (self.folder / digest).unlink(missing_ok=True)

    def _holds(self, digest: str, data: bytes | memoryview) -> bool:
        try:
            return (self.folder / digest).read_bytes() == data
        except OSError:
            return False
