"""Which Flower node works for which clients.

Flower's node ids are random, and results must not depend on them: each node is asked once for its
partition id, and clients are sampled by that. One node may stand for several clients, because
Flower's simulation polls each node ten times a second, which is too slow for ten thousand nodes.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from engine.replies import replies_as_they_come
from engine.shared_memory import can_share
from engine.transport import SHARED, pack, release
from fedta_app.errors import ConfigError, RunError
from fedta_app.seeding import checked_seed, numpy_generator

_TIMEOUT = 600.0  # seconds: the first answer waits for every actor to import torch


class Nodes:
    """The nodes of a federation.

    Attributes
    ----------
    by_partition : dict from the partition id of a client, 0..K-1, to node id
    share_memory : bool
        Whether all nodes can map this process's memory, as they can on the same machine.
    """

    def __init__(self, by_partition: dict[int, int], share_memory: bool = False) -> None:
        self.by_partition = by_partition
        self.share_memory = share_memory

    def __len__(self) -> int:
        return len(self.by_partition)

    def sample(
        self,
        fraction: float,
        seed: int,
        purpose: str,
        server_round: int,
        *,
        others_than: Collection[int] = (),
    ) -> list[int]:
        """Return `count(fraction)` sorted partition ids; see `choose`."""
        return choose(len(self), fraction, seed, purpose, server_round, others_than=others_than)

    def count(self, fraction: float) -> int:
        """Return how many clients a share of them is, at least one."""
        return _count(len(self), fraction)


def choose(
    number: int,
    fraction: float,
    seed: int,
    purpose: str,
    server_round: int,
    *,
    others_than: Collection[int] = (),
) -> list[int]:
    """Return a share of 0..number-1, at least one of them, sorted: drawn by seed and round.

    Those in `others_than` are taken only if there are not enough others.
    """
    again = ("others",) if others_than else ()
    generator = numpy_generator(checked_seed(seed), "clients", purpose, server_round, *again)
    size = _count(number, fraction)
    if not others_than:
        return sorted(generator.choice(number, size=size, replace=False).tolist())
    order = generator.permutation(number).tolist()
    return sorted(sorted(order, key=lambda one: one in others_than)[:size])


def _count(number: int, fraction: float) -> int:
    return max(1, round(fraction * number))


def num_nodes(num_clients: int, clients_per_node: int) -> int:
    """Return how many nodes so many clients need; 0 clients per node means 1."""
    return math.ceil(num_clients / max(1, clients_per_node))


def discover_nodes(grid: Grid, num_clients: int, clients_per_node: int = 1) -> Nodes:
    """Ask every node for its partition id, and whether it can map this process's memory.

    Parameters
    ----------
    num_clients : int
        K, or 0 for as many as the federation has room for.
    clients_per_node : int
        How many clients, of neighbouring partition ids, a node stands for; 0 is 1.

    Raises
    ------
    ConfigError
        When the federation has another number of nodes; the message holds the option to type.
    RunError
        When partitions are missing or held twice.
    """
    node_ids = list(grid.get_node_ids())
    share = max(1, clients_per_node)
    num_clients = num_clients or share * len(node_ids)
    needed = num_nodes(num_clients, share)
    if len(node_ids) != needed:
        each = f" with clients-per-node = {share}" if share > 1 else ""
        several = math.ceil(num_clients / len(node_ids)) if node_ids else 0
        fits = several > 1 and num_nodes(num_clients, several) == len(node_ids)
        or_else = f", or set clients-per-node = {several}" if fits else ""
        raise ConfigError(
            f"num-clients = {num_clients}{each} does not match the federation of {len(node_ids)} "
            f'nodes: add --federation-config "num-supernodes={needed}" to flwr run{or_else}'
        )
    content = RecordDict()
    if can_share():
        content["arrays"] = pack(torch.arange(8), SHARED)
    questions = [Message(content, node_id, MessageType.QUERY) for node_id in node_ids]
    found, share_memory = {}, can_share()
    for reply in replies_as_they_come(grid, questions, _TIMEOUT):
        if reply.has_error():
            # Ray's reason is a traceback, whose last line is the error.
            reason = (reply.error.reason or "no reason given").strip().splitlines()[-1]
            raise RunError(f"a client did not start: {reason}")
        answer: Mapping[str, Any] = reply.content.config_records["config"]
        found[int(answer["partition-id"])] = reply.metadata.src_node_id
        share_memory = share_memory and answer["shares-memory"] is True
    for arrays in content.array_records.values():
        release(arrays, SHARED)
    if sorted(found) != list(range(len(node_ids))):
        raise RunError(
            f"the {len(node_ids)} nodes hold {len(found)} different partitions: each node needs "
            f"its own partition-id from 0 to {len(node_ids) - 1}"
        )
    return Nodes({client: found[client // share] for client in range(num_clients)}, share_memory)
