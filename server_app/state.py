"""The state of the server between rounds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from engine.client_memory import ClientMemory, Setup, bytes_vector, client_memory
from engine.deployment import is_deployment
from engine.replies import replies_as_they_come
from engine.transport import MEMORY, SHARED, WIRE
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from fedta_app.runs.loop import check_keys, check_tensor, named_by_client
from fedta_app.runs.metrics import Figures
from fedta_app.training.datasets import of_nodes
from fedta_app.training.evaluation import measure
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.flat import weights_sha256
from fedta_app.vectors.layout import Segment
from fedta_app.vectors.mask import FlatMask
from strategies import Exchange, Nodes, welcome_back


@dataclass
class ServerState:
    """The global weights, the head and the masks, and the connection to the clients.

    Attributes
    ----------
    weights : Tensor
        All of `workspace.weights`, on the device.
    head : str
        Digest of the frozen head; empty while there is none.
    mask : str
        Digest of the mask of the weights that are trained; if empty, all of them are. What is
        trained travels, but for clients' personal layers.
    own_masks : dict from partition id to str
        Digests of the masks of the weights that clients train, where each has its own.
    notes : dict
        What summary.json says of the head, the mask, the transport and the clients.
    old_heads : set of str
        Digests of heads that others replaced, and that a checkpoint may still name.
    """

    grid: Grid
    workspace: Workspace
    exchange: Exchange
    weights: Tensor
    head: str = ""
    mask: str = ""
    own_masks: dict[int, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    old_heads: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, grid: Grid, nodes: Nodes, workspace: Workspace) -> "ServerState":
        """Return the state at the start of a run."""
        transport = choose_transport(workspace.config, nodes)
        settings: dict[str, int | str] = {"num-clients": len(nodes), "layout": workspace.layout}
        exchange = Exchange(nodes, settings, client_memory(workspace).store, transport)
        notes = {"transport": transport.removeprefix("fedta.")}
        return cls(grid, workspace, exchange, workspace.weights.vector.clone(), notes=notes)

    @property
    def config(self) -> RunConfig:
        """The configuration, with num-clients = 0 replaced by the number of clients."""
        return self.workspace.config

    @property
    def deployed(self) -> bool:
        """Whether clients are on machines of their own."""
        return is_deployment(self.grid)

    @property
    def held(self) -> list[int]:
        """How many training images each client has."""
        return [self.images_of(client) for client in range(len(self.exchange.nodes))]

    def images_of(self, partition_id: int) -> int:
        """Return how many training images a client has; nodes with their own have said so."""
        if of_nodes(self.config):
            return self.exchange.nodes.images[partition_id]
        return len(self.workspace.partitions[partition_id])

    @property
    def memory(self) -> ClientMemory:
        """The blobs of this process, and the head and masks that it has loaded."""
        return client_memory(self.workspace)

    @property
    def clients_per_round(self) -> int:
        """How many clients a training round asks, whose replies therefore fit into memory."""
        return self.exchange.nodes.count(self.config.fraction_train)

    def taking_part(self) -> Sequence[int]:
        """Return the clients that can train: all but those that lack the mask of their own."""
        return sorted(self.own_masks) or range(len(self.exchange.nodes))

    def welcome_back(self) -> None:
        """Let nodes of a deployment that were started again take over their clients."""
        found = welcome_back(self.grid, self.exchange.nodes, self.config.clients_per_node)
        for partition in found:  # perhaps on an empty disk: its blobs are sent again
            share = max(1, self.config.clients_per_node)
            for client in range(share * partition, share * (partition + 1)):
                self.exchange.known.pop(client, None)
            print(f"the node with partition-id = {partition} is back", flush=True)

    def send(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages and return the replies in the order of their arrival."""
        return replies_as_they_come(self.grid, messages, self.config.round_timeout)

    def setup(self, partition_id: int) -> Setup:
        """Return the digests of what a client needs to train, besides the weights."""
        return Setup(self.head, self.mask, self.own_masks.get(partition_id, ""))

    def trained(self) -> FlatMask | None:
        """Return the mask of the weights that are trained, or None if all of them are."""
        return self.memory.mask(self.mask)

    def travelling(self) -> FlatMask | None:
        """Return the mask of the weights that travel, or None if all of them do."""
        return self.workspace.travelling(self.trained())

    def set_head(self, head: Tensor) -> None:
        """Freeze a head: a float32 vector of `workspace.head`'s layout."""
        before, self.head = self.head, self.memory.keep(head)
        if before not in ("", self.head):
            self.old_heads.add(before)
            self.exchange.forget(before)
        self.memory.load_head(self.head)

    def set_mask(self, mask: FlatMask) -> None:
        """Let only these weights be trained from now on.

        Raises
        ------
        RunError
            When personal layers would be all of them, or none.
        """
        if (layers := self.workspace.layers) is not None:
            travelling, own = layers.split(mask)
            if not (travelling.num_trained and own.num_trained):
                share = "none" if travelling.num_trained else "all"
                raise RunError(
                    f"personal-layers = {self.config.personal_layers!r} does not fit the mask: "
                    f"{share} of the {mask.num_trained} weights that it trains are personal"
                )
        self.mask = self.memory.store.put(mask.to_bits())

    def measure(self, *, last: bool = False, at_start: bool = False) -> Figures:
        """Measure the global model on validation and, if due, test images."""
        self.memory.load_head(self.head)
        return measure(self.workspace, self.weights, last=last, at_start=at_start)

    def model(self) -> nn.Module:
        """Return the model with the global weights and the head."""
        self.memory.load_head(self.head)
        self.workspace.weights.load(self.weights)
        return self.workspace.built.model  # frozen blocks included

    def sha256(self) -> str:
        """Return the sha256 of all weights; those of a frozen head come last."""
        head = []
        if self.head:
            head.append(bytes_vector(self.memory.store.get(self.head)).view(torch.float32))
        return weights_sha256(torch.cat([self.weights.cpu(), *head]))

    def travelling_weights(self) -> Tensor:
        """Return the weights that travel, packed, (P,)."""
        mask = self.travelling()
        return self.weights if mask is None else mask.gather(self.weights)

    def set_travelling_weights(self, weights: Tensor) -> None:
        """Set the weights that travel; all others keep their bits."""
        mask = self.travelling()
        if mask is None:
            self.weights.copy_(weights)
        else:
            mask.scatter_(self.weights, weights.to(self.weights.device))

    def whole(self, vector: Tensor) -> Tensor:
        """Return a vector over the weights that travel, (P,), over all of them, (N,)."""
        travelling = self.travelling()
        if travelling is None:
            return vector.to(self.weights.device)
        whole = torch.zeros_like(self.weights)
        travelling.scatter_(whole, vector.to(whole.device))
        return whole

    def expand(self, partition_id: int, vector: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a client's vector over the weights that travel, (P,), and a mask over it.

        The mask says which entries the client trained; None means all of them, which is so where
        clients have no masks of their own.
        """
        own, travelling = self._own_mask(partition_id), self.travelling()
        if own is None or travelling is None:
            return vector, None
        trained = own.within(travelling)
        whole = torch.zeros_like(trained.mask, dtype=vector.dtype)
        trained.scatter_(whole, vector.to(whole.device))
        return whole, trained.mask

    def trained_by(self, partition_id: int, travelling: int) -> int:
        """Return how many of the weights that travel a client trains."""
        own = self._own_mask(partition_id)
        return travelling if own is None else own.num_trained

    def limits(self) -> dict[str, Any]:
        """Return what a strategy may expect of the replies to a round."""
        config = self.config
        return {
            "min_clients_ok": config.min_clients_ok,
            "most_examples": self.images_of,
            "steps_of": lambda examples: config.local_steps or -(-examples // config.batch_size),
        }

    def holders(self) -> Tensor | None:
        """Return how many clients train each weight that travels, (P,); None if all do."""
        travelling = self.travelling()
        if not self.own_masks or travelling is None:
            return None
        count = torch.zeros_like(travelling.mask, dtype=torch.float32)
        for partition_id in self.own_masks:
            own = self._own_mask(partition_id)
            assert own is not None
            count += own.mask
        return travelling.gather(count)

    def segments(self) -> tuple[Segment, ...]:
        """Return how many of the weights that travel are of each tensor, in their order."""
        travelling = self.travelling()
        layout = self.workspace.weights.layout
        return layout.segments(None if travelling is None else travelling.mask)

    def _own_mask(self, partition_id: int) -> FlatMask | None:
        """Return the mask of what travels of a client's own, or None where it has none."""
        own = self.memory.mask(self.own_masks.get(partition_id, ""))
        return None if own is None else self.workspace.travelling(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights, the digests of head, masks and sent blobs, and the notes."""
        return {
            "weights": self.weights,
            "head": self.head,
            "mask": self.mask,
            "own-masks": {str(pid): digest for pid, digest in self.own_masks.items()},
            "known": {str(pid): sorted(told) for pid, told in self.exchange.known.items()},
            "notes": self.notes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises
        ------
        RunError
            When a blob is missing or damaged: found later, it would be a client that failed.
        """
        check_keys(state, ("weights", "head", "mask", "own-masks", "known", "notes"), "server")
        self.weights.copy_(check_tensor(state["weights"], self.weights, "weights"))
        self.head, self.mask = state["head"], state["mask"]
        self.own_masks = named_by_client(state["own-masks"], str)
        for digest in {self.head, self.mask, *self.own_masks.values()} - {""}:
            self.memory.store.get(digest)
        known = named_by_client(state["known"], list)
        if not self.deployed:  # whose nodes may have started again on empty disks
            self.exchange.known = {pid: set(told) for pid, told in known.items()}
        self.notes.update(state["notes"])
        self.memory.load_head(self.head)


def choose_transport(config: RunConfig, nodes: Nodes) -> str:
    """Return the transport of the configuration; for "auto", the fastest that works here.

    Raises
    ------
    ConfigError
        When the clients cannot use the transport that the configuration asks for.
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
