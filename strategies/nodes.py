"""Which Flower node holds which partition.

Node ids are random numbers of a run; results must not depend on them. Each node is asked once for
its partition id, and clients are sampled by that.
"""

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from engine.records import whole
from fedta_app.config import ConfigError
from fedta_app.run_directory import RunError
from fedta_app.seeding import numpy_generator

_TIMEOUT = 600.0  # seconds: the first answer waits for every actor to import torch


class Nodes:
    """The nodes of a federation by partition id, 0..K-1."""

    def __init__(self, by_partition: dict[int, int]) -> None:
        self.by_partition = by_partition

    def __len__(self) -> int:
        return len(self.by_partition)

    def sample(self, fraction: float, seed: int, purpose: str, server_round: int) -> list[int]:
        """Return max(1, round(fraction * K)) partition ids, sorted; the same for the same round."""
        count = max(1, round(fraction * len(self)))
        generator = numpy_generator(seed, "clients", purpose, server_round)
        return sorted(generator.choice(len(self), size=count, replace=False).tolist())


def discover_nodes(grid: Grid, num_clients: int) -> Nodes:
    """Ask every node for its partition.

    Parameters
    ----------
    num_clients : int
        K, or 0 for as many as the federation has.

    Raises
    ------
    ConfigError
        When the federation has another number of nodes; the sentence holds the option to type.
    RunError
        When partitions are missing or held twice.
    """
    node_ids = list(grid.get_node_ids())
    if num_clients and len(node_ids) != num_clients:
        raise ConfigError(
            f"num-clients = {num_clients} does not match the federation of {len(node_ids)} nodes: "
            f'add --federation-config "num-supernodes={num_clients}" to flwr run'
        )
    questions = [Message(RecordDict(), node_id, MessageType.QUERY) for node_id in node_ids]
    found = {}
    for reply in grid.send_and_receive(questions, timeout=_TIMEOUT):
        if reply.has_error():
            raise RunError(f"a client did not start: {reply.error.reason}")
        partition_id = whole(reply.content.config_records["config"], "partition-id")
        found[partition_id] = reply.metadata.src_node_id
    if sorted(found) != list(range(len(node_ids))):
        raise RunError(
            f"the {len(node_ids)} nodes hold {len(found)} different partitions: each node needs "
            f"its own partition-id from 0 to {len(node_ids) - 1}"
        )
    return Nodes(found)
