"""Bytes on disk under their own sha256: what a client is told once, and what it keeps itself.

The head, and masks as bits, travel to a client the first time it needs them; after that a message
names them by digest. What a client keeps from one round to another (an algorithm's memory) it
writes itself and names to the server. A blob never changes: a checkpoint that names it finds what
was there. On disk, blobs outlive the process, and cost neither memory nor messages however many
clients there are.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

from fedta_app.errors import RunError
from fedta_app.files import write_atomically


class BlobStore:
    """A folder of byte strings by digest; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Keep the bytes, unless they are there already, and return their sha256."""
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
            When they are not there, or are not what they were.
        """
        try:
            data = (self.folder / digest).read_bytes()
        except OSError as error:
            raise RunError(f"{self.folder / digest} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise RunError(f"{self.folder / digest} is damaged: delete it, and start the run over")
        return data

    def keep_only(self, digests: Collection[str]) -> None:
        """Remove every blob but these."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in digests:
                    path.unlink(missing_ok=True)
