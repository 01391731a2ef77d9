"""What a process knows of its clients: what each was told once, and what each keeps.

A client is told the head, the mask by which it receives and the mask by which it trains; it keeps
its algorithm's memory. All of it lies in the run directory as blobs (`fedta_app.runs.blobs`):

    blobs/<digest>               told: the head and masks
    clients/<partition>/<digest> kept: an algorithm's memory of a client, as safetensors

In a simulation server and clients share the directory; in a deployment each machine has its own,
and a client's memory never leaves it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.directory import run_path
from fedta_app.training.workspace import Workspace, shared_workspace
from fedta_app.vectors.mask import FlatMask

_MASKS_KEPT = 4  # unpacked masks per process; a client's own mask is read from disk otherwise


class MemoryLostError(RunError):
    """The memory that the server names is not on this client's disk any more."""


@dataclass(frozen=True)
class Setup:
    """Digests of what a message needs besides its vectors; empty where there is nothing.

    Attributes
    ----------
    head : str
        The head's parameters, float32.
    down : str
        The mask of the weights that travel to the client; all of them if empty.
    up : str
        The mask of the weights that it trains, and that travel back; that of `down` if empty.
    memory : str
        What the client itself keeps for its algorithm.
    kept : tuple of str
        Memories that the server's checkpoints still name; the client may forget all others.
    """

    head: str = ""
    down: str = ""
    up: str = ""
    memory: str = ""
    kept: tuple[str, ...] = ()

    def digests(self) -> set[str]:
        """Return those that the server tells, without the empty ones."""
        return {self.head, self.down, self.up} - {""}

    def to_config(self) -> dict[str, str]:
        """Return the setup as entries of a message's configuration."""
        kept = " ".join(self.kept)
        return {
            "head": self.head, "down": self.down, "up": self.up, "memory": self.memory,
            "kept-memories": kept,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "Setup":
        """Return the setup that `to_config` wrote."""
        head, down, up, memory = (str(config[key]) for key in ("head", "down", "up", "memory"))
        return cls(head, down, up, memory, tuple(str(config["kept-memories"]).split()))


class ClientMemory:
    """The blobs of a process, and what of them is loaded into its model."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._head = ""
        self._masks: dict[str, FlatMask] = {}

    @cached_property
    def store(self) -> BlobStore:
        """What clients are told; on one machine, server and clients share it."""
        return BlobStore(run_path(self.workspace.config) / "blobs")

    def learn(self, blobs: Iterable[bytes]) -> None:
        """Keep what came with a message."""
        for data in blobs:
            self.store.put(data)

    def load_head(self, digest: str) -> None:
        """Put the head into the model, unless it is there."""
        head = self.workspace.head
        if digest and head is not None and digest != self._head:
            head.load(bytes_vector(self.store.get(digest)).view(torch.float32))
            self._head = digest

    def keep(self, vector: Tensor) -> str:
        """Keep a vector as a blob and return its digest."""
        return self.store.put(vector_bytes(vector))

    def mask(self, digest: str) -> FlatMask | None:
        """Return the mask of a digest, or None for the empty one."""
        if not digest:
            return None
        if digest not in self._masks:
            weights = self.workspace.weights.vector
            mask = FlatMask.from_bits(self.store.get(digest), weights.numel(), weights.device)
            if len(self._masks) == _MASKS_KEPT:
                self._masks.pop(next(iter(self._masks)))
            self._masks[digest] = mask
        return self._masks[digest]

    def recall(self, partition_id: int, digest: str) -> dict[str, Tensor]:
        """Return what a client kept, empty for the empty digest.

        Raises
        ------
        MemoryLostError
            When it is not there, or damaged.
        """
        if not digest:
            return {}
        try:
            return safetensors.load(self._own(partition_id).get(digest))
        except RunError as error:
            raise MemoryLostError(f"client {partition_id} lost its memory: {error}") from error

    def memorise(
        self, partition_id: int, vectors: Mapping[str, Tensor], kept: Iterable[str]
    ) -> str:
        """Keep vectors for a client, forget those that nobody names, and return their digest.

        Parameters
        ----------
        kept : iterable of str
            Digests that stay; a lost round may be played again from them.
        """
        if not vectors:
            return ""
        data = {name: vector.detach().cpu().contiguous() for name, vector in vectors.items()}
        store = self._own(partition_id)
        digest = store.put(safetensors.save(data))
        store.keep_only({*kept, digest})
        return digest

    def _own(self, partition_id: int) -> BlobStore:
        return BlobStore(memories_path(self.workspace) / str(partition_id))


def memories_path(workspace: Workspace) -> Path:
    """Return the folder of what clients keep, a folder for each client in it."""
    return run_path(workspace.config) / "clients"


def forget_unnamed(folder: Path, named: Mapping[int, set[str]]) -> None:
    """Remove the memories below a folder that are not named for their client."""
    if folder.is_dir():
        for own in folder.iterdir():
            BlobStore(own).keep_only(named.get(int(own.name), set()))


@lru_cache(maxsize=1)
def client_memory(workspace: Workspace) -> ClientMemory:
    """Return the memory of this process's clients of a run."""
    return ClientMemory(workspace)


def vector_bytes(vector: Tensor) -> bytes:
    """Return the bytes of a vector's values."""
    return vector.detach().cpu().contiguous().numpy().tobytes()


def bytes_vector(data: bytes) -> Tensor:
    """Return the bytes as a uint8 vector, as blobs travel."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def forget_run() -> None:
    """Drop this process's workspace and memory: the next run starts from untrained weights."""
    client_memory.cache_clear()
    shared_workspace.cache_clear()
