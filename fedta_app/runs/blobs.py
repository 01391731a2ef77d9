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

from fedta_app.errors import RunError
from fedta_app.files import write_atomically

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of blobs, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Store the bytes, unless they are there already, and return their sha256."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / digest
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of a digest.

        Raises
        ------
        RunError
            When they are missing, or do not match their digest.
        """
        if not _DIGEST.fullmatch(digest):  # it may come from another machine
            raise RunError(f"{digest!r} is not the sha256 of a blob")
        try:
            data = (self.folder / digest).read_bytes()
        except OSError as error:
            raise RunError(f"{self.folder / digest} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise RunError(f"{self.folder / digest} is damaged: delete it, and start the run over")
        return data

    def keep_only(self, digests: Collection[str]) -> None:
        """Delete all other blobs."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in digests:
                    path.unlink(missing_ok=True)
