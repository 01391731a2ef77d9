"""Blobs: immutable byte strings on disk, each named by its sha256.

The head and the masks travel to a client the first time it needs them; after that, messages refer
to them by digest. A client's memory (what an algorithm keeps on it between rounds) is a blob that
the client writes, and whose digest it sends to the server. Since a blob never changes, a resumed
run finds exactly the bytes that its checkpoint refers to.
"""

import hashlib
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from fedta_app.errors import NO_RESUME, RunError
from fedta_app.files import temporary_of
from fedta_app.hashed_files import ReadBuffer, read_hashed, write_hashed

_START_OVER = f"put back what was there, or start the run over ({NO_RESUME})"
_NEW = "blob"  # until its digest is known
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
        return write_hashed(self.folder / _NEW, parts, named_by_hash=True)

    def get(self, digest: str, buffer: ReadBuffer | None = None) -> memoryview:
        """Return the bytes of a digest, in memory that the caller may write to.

        Parameters
        ----------
        buffer : ReadBuffer, optional
            Whose memory it is; by default it is new.

        Raises
        ------
        RunError
            When they are missing, or do not match their digest.
        """
        if not _DIGEST.fullmatch(digest):  # it may come from another machine
            raise RunError(f"{digest!r} is not the sha256 of a blob")
        path = self.folder / digest
        try:
            data, found = read_hashed(path, buffer)
        except OSError as error:
            raise RunError(f"{path} cannot be read ({error.strerror}): {_START_OVER}") from error
        if found != digest:
            raise RunError(f"{path} is damaged: {_START_OVER}")
        return data

    def keep_only(self, digests: Collection[str], *, make_way: bool = False) -> None:
        """Delete all other blobs, and not what a process may be writing.

        Parameters
        ----------
        make_way : bool
            Leave the file of one of them to the blob that this process stores next.
        """
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name in digests or not _DIGEST.fullmatch(path.name):
                    continue
                with suppress(FileNotFoundError):  # another process was quicker
                    # With a second name, in a backup of hard links, it must keep its bytes.
                    if make_way and path.stat().st_nlink == 1:
                        path.replace(temporary_of(self.folder / _NEW))
                        make_way = False
                    else:
                        path.unlink()

    def discard(self, digest: str) -> None:
        """Delete a blob, if it is there."""
        (self.folder / digest).unlink(missing_ok=True)

    def _holds(self, digest: str, data: bytes | memoryview) -> bool:
        try:
            return (self.folder / digest).read_bytes() == data
        except OSError:
            return False
