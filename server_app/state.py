"""What the server knows between rounds."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from engine.replies import replies_as_they_come
from engine.transport import MEMORY, SHARED, WIRE
from fedta_app.client_memory import ClientMemory, Setup, bytes_vector, client_memory
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.runs.metrics import Figures
from fedta_app.training.evaluation import measure
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.flat import weights_sha256
from fedta_app.vectors.mask import FlatMask
from strategies import Exchange, Nodes

ROUND_TIMEOUT = 3600.0  # seconds to wait for the replies of a round


@dataclass
class ServerState:
    """The global weights, the head and the masks, and the way to the clients.

    Attributes
    ----------
    weights : Tensor
        All of `workspace.weights`, on the device.
    head : str
        Digest of the frozen head; empty while there is none.
    mask : str
        Digest of the mask of the weights that travel; empty: all of them.
    own_masks : dict from partition id to str
        Digests of the masks that clients train by, where each has its own.
    notes : dict
        What summary.json says of the head, the mask and the transport.
    transport : str
        How vectors travel.
    """

    grid: Grid
    workspace: Workspace
    exchange: Exchange
    weights: Tensor
    transport: str
    head: str = ""
    mask: str = ""
    own_masks: dict[int, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, grid: Grid, nodes: Nodes, workspace: Workspace) -> "ServerState":
        """Return the state at the start of a run."""
        transport = choose_transport(workspace.config, nodes)
        task: dict[str, int | str] = {
            "num-clients": len(nodes),
            "layout": workspace.layout,
            "transport": transport,
        }
        exchange = Exchange(nodes, task, client_memory(workspace).store)
        notes = {"transport": transport.removeprefix("fedta.")}
        weights = workspace.weights.vector.clone()
        return cls(grid, workspace, exchange, weights, transport, notes=notes)

    @property
    def config(self) -> RunConfig:
        """The configuration, with the number of clients resolved."""
        return self.workspace.config

    @property
    def memory(self) -> ClientMemory:
        """What this process was told once: blobs, and what of them is in the model."""
        return client_memory(self.workspace)

    def send(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages and return the replies as they come."""
        return replies_as_they_come(self.grid, messages, ROUND_TIMEOUT)

    def setup(self, partition_id: int) -> Setup:
        """Return what a client needs to train besides the weights."""
        return Setup(self.head, self.mask, self.own_masks.get(partition_id, ""))

    def travelling(self) -> FlatMask | None:
        """Return the mask of the weights that travel, None for all of them."""
        return self.memory.mask(self.mask)

    def set_head(self, head: Tensor) -> None:
        """Freeze a head: a float32 vector of `workspace.head`'s layout."""
        self.head = self.memory.keep(head)
        self.memory.load_head(self.head)

    def set_mask(self, mask: FlatMask) -> None:
        """Let only these weights travel from now on."""
        self.mask = self.memory.store.put(mask.to_bits())

    def measure(self, *, last: bool = False) -> Figures:
        """Measure the global model on validation and, where due, test images."""
        self.memory.load_head(self.head)
        return measure(self.workspace, self.weights, last=last)

    def sha256(self) -> str:
        """Return the sha256 of all weights, the head's behind the others where it is frozen."""
        return weights_sha256(torch.cat([self.weights.cpu(), *self._head_vector()]))

    def _head_vector(self) -> list[Tensor]:
        if not self.head:
            return []
        return [bytes_vector(self.memory.store.get(self.head)).view(torch.float32)]

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps as tensors."""
        head = self._head_vector()
        return {"weights": self.weights, **({"head": head[0]} if head else {})}

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON."""
        return {
            "head": self.head,
            "mask": self.mask,
            "own-masks": {str(pid): digest for pid, digest in self.own_masks.items()},
            "known": {str(pid): sorted(told) for pid, told in self.exchange.known.items()},
            "notes": self.notes,
        }

    def restore(self, tensors: dict[str, Tensor], stored: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.weights.copy_(tensors["weights"])
        self.head, self.mask = stored["head"], stored["mask"]
        self.own_masks = {int(pid): digest for pid, digest in stored["own-masks"].items()}
        self.exchange.known = {int(pid): set(told) for pid, told in stored["known"].items()}
        self.notes.update(stored["notes"])
        self.memory.load_head(self.head)


def choose_transport(config: RunConfig, nodes: Nodes) -> str:
    """Return how vectors travel: as `transport` says, or as fast as this federation can.

    Raises
    ------
    ConfigError
        When the clients cannot do what `transport` asks for.
    """
    in_process = config.engine == "in-process"
    if config.transport == "auto":
        shared = SHARED if nodes.share_memory else WIRE
        return MEMORY if in_process else shared
    if config.transport == "memory" and not in_process:
        raise ConfigError(
            "transport = 'memory' is not allowed with engine = 'flower': its clients have "
            "processes of their own; transport is auto, shared or wire"
        )
    if config.transport == "shared" and not nodes.share_memory:
        raise ConfigError(
            "transport = 'shared' is not allowed here: the clients cannot map this machine's "
            "memory (another machine, or not Linux); transport is auto or wire"
        )
    return {"memory": MEMORY, "shared": SHARED, "wire": WIRE}[config.transport]
