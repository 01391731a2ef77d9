"""The blobs of a run: what clients are sent once, and what each client stores for itself.

The server sends a client the head, the mask of the weights that travel to it, and the mask of the
weights that it trains. A client stores the state that its algorithm needs from round to round (its
memory). Both lie in the run directory as blobs (`fedta_app.runs.blobs`):

    blobs/<digest>               sent by the server: the head and masks
    clients/<partition>/<digest> stored by a client: its memory, as safetensors

In a simulation, server and clients share the directory. In a deployment each machine has its own,
and a client's memory never leaves it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.hashed_files import ReadBuffer
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.directory import run_path
from fedta_app.training.workspace import Workspace, shared_workspace
from fedta_app.vectors.mask import FlatMask
from fedta_app.vectors.tensor_bytes import tensor_parts, tensors_in

_MASKS_KEPT = 4  # unpacked masks per process; others are read from disk when they are needed


class MemoryLostError(RunError):
    """The memory that the server refers to is no longer on this client's disk."""


@dataclass(frozen=True)
class Setup:
    """Digests of the blobs that a message refers to; empty where it needs none.

    Attributes
    ----------
    head : str
        The head's parameters, float32.
    down : str
        The mask of the weights that travel to the client; if empty, all weights travel.
    up : str
        The mask of the weights that the client trains and returns; `down` if empty.
    memory : str
        The client's memory.
    kept : tuple of str
        Memories that the server's checkpoints still refer to; the client deletes all others.
    """

    head: str = ""
    down: str = ""
    up: str = ""
    memory: str = ""
    kept: tuple[str, ...] = ()

    def digests(self) -> set[str]:
        """Return the digests of what the server sends: head and masks, where there are any."""
        return {self.head, self.down, self.up} - {""}

    def to_config(self) -> dict[str, str]:
        """Return the setup as entries of a message's configuration."""
        return {**asdict(self), "kept": " ".join(self.kept)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Setup":
        """Return the setup that `to_config` wrote."""
        own = {entry.name: config[entry.name] for entry in fields(cls)}
        return cls(**{**own, "kept": tuple(own["kept"].split())})


class ClientMemory:
    """The blobs that a process works with, and the head and masks that it has loaded."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._head = ""
        self._buffer = ReadBuffer()

    @cached_property
    def store(self) -> BlobStore:
        """The blobs that the server sends; on one machine, server and clients share the folder."""
        return BlobStore(run_path(self.workspace.config) / "blobs")

    def learn(self, blobs: Iterable[bytes]) -> None:
        """Store the blobs that came with a message."""
        for data in blobs:
            self.store.put(data)

    def load_head(self, digest: str) -> None:
        """Load the head into the model, unless it is there or the digest is empty."""
        head = self.workspace.head
        if digest and head is not None and digest != self._head:
            vector = bytes_vector(self.store.get(digest)).view(torch.float32)
            if vector.shape != head.vector.shape:
                raise RunError(f"{self.store.folder / digest} is not a head of this model")
            head.load(vector)
            self._head = digest

    def keep(self, vector: Tensor) -> str:
        """Store a vector as a blob and return its digest."""
        return self.store.put(vector_bytes(vector))

    def mask(self, digest: str) -> FlatMask | None:
        """Return the mask of a digest, or None for the empty one."""
        return _load_mask(self, digest) if digest else None

    def recall(
        self, partition_id: int, digest: str, kept: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return a client's memory, for the empty digest an empty one, and delete outdated ones.

        They are deleted before a client trains, and not when it stores its new memory: a client
        that took longer than `round-timeout` may be asked again meanwhile, and what it would then
        delete is the memory that the later round has stored.

        Parameters
        ----------
        kept : collection of str, optional
            Digests of the memories to keep: a lost round may be repeated from them. By default
            all are kept.

        Raises
        ------
        MemoryLostError
            When it is missing or damaged.
        """
        store = self._own(partition_id)
        if kept is not None:
            store.keep_only({*kept, digest}, make_way=True)
        if not digest:
            return {}
        try:
            return tensors_in(store.get(digest, self._buffer))
        except (RunError, ValueError) as error:
            raise MemoryLostError(f"client {partition_id} lost its memory: {error}") from error

    def memorise(self, partition_id: int, vectors: Mapping[str, Tensor]) -> str:
        """Store a client's memory and return its digest, which is empty for an empty memory."""
        return self._own(partition_id).put(*tensor_parts(vectors)) if vectors else ""

    def _own(self, partition_id: int) -> BlobStore:
        return BlobStore(memories_path(self.workspace) / str(partition_id))


@lru_cache(_MASKS_KEPT)
def _load_mask(memory: ClientMemory, digest: str) -> FlatMask:
    weights = memory.workspace.weights.vector
    return FlatMask.from_bits(memory.store.get(digest), weights.numel(), weights.device)


def memories_path(workspace: Workspace) -> Path:
    """Return the folder of the clients' memories, which holds one folder per client."""
    return run_path(workspace.config) / "clients"


def forget_unnamed(folder: Path, named: Mapping[int, set[str]]) -> None:
    """Delete the memories below a folder, except those that `named` lists for their client."""
    if folder.is_dir():
        for own in folder.iterdir():
            if own.name.isdecimal():
                BlobStore(own).keep_only(named.get(int(own.name), set()))


@lru_cache(maxsize=1)
def client_memory(workspace: Workspace) -> ClientMemory:
    """Return this process's `ClientMemory` for a run."""
    return ClientMemory(workspace)


def vector_bytes(vector: Tensor) -> bytes:
    """Return the bytes of a vector's values."""
    return vector.detach().cpu().contiguous().numpy().tobytes()


def bytes_vector(data: bytes | memoryview) -> Tensor:
    """Return the bytes as a uint8 vector, the form in which blobs travel."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def forget_run() -> None:
    """Drop this process's workspace and memory, so that the next run starts afresh."""
    _load_mask.cache_clear()
    client_memory.cache_clear()
    shared_workspace.cache_clear()
