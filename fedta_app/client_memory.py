"""What a client was told once: the head, the mask it receives by, the mask it trains by."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from fedta_app.runs.blobs import BlobStore
from fedta_app.runs.directory import run_path
from fedta_app.training.workspace import Workspace, shared_workspace
from fedta_app.vectors.mask import FlatMask

_MASKS_KEPT = 4  # unpacked masks per process; a client's own mask is read from disk otherwise


@dataclass(frozen=True)
class Setup:
    """Digests of what a task needs besides its vector; empty where there is nothing.

    Attributes
    ----------
    head : str
        The head's parameters, float32.
    down : str
        The mask of the weights that travel to the client; all of them if empty.
    up : str
        The mask of the weights that it trains, and that travel back; that of `down` if empty.
    """

    head: str = ""
    down: str = ""
    up: str = ""

    def digests(self) -> set[str]:
        """Return those that are not empty."""
        return {self.head, self.down, self.up} - {""}


class ClientMemory:
    """The blobs of a process, and what of them is loaded into its model."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._head = ""
        self._masks: dict[str, FlatMask] = {}

    @cached_property
    def store(self) -> BlobStore:
        """The run's blobs; on one machine, server and clients share them."""
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
