"""Which Flower node works for which clients.

Flower's node ids are random, and results must not depend on them: each node is asked once for its
partition id, and clients are sampled by that. One node may stand for several clients, because
Flower's simulation polls each node ten times a second, which is too slow for ten thousand nodes.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence

import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from engine.deployment import is_deployment
from engine.replies import replies_as_they_come
from engine.shared_memory import can_share
from engine.transport import SHARED, pack, release
from fedta_app.errors import ConfigError, RunError
from fedta_app.seeding import checked_seed, numpy_generator
from strategies.node_answers import ANY_NODE, Answer, NodeRefusedError, Terms

_BETWEEN_LOOKS = 1.0  # seconds
_SHORT_TIMEOUT = 60.0  # a node that comes during a run must not hold it up
_SILENT = "does not answer"
_TIMEOUT = 600.0  # seconds: the first answer waits for every actor to import torch


class Nodes:
    """The nodes of a federation.

    Attributes
    ----------
    by_partition : dict from the partition id of a client, 0..K-1, to node id
    share_memory : bool
        Whether all nodes can map this process's memory, as they can on the same machine.
    terms : Terms
        What a node has to be to be one of them.
    images : dict from partition id to int
        How many images of their own nodes say that they have.
    spare : dict from node id to Answer
        Nodes that came later, and whose partition another node holds.
    refused : dict from node id to str
        Why nodes that are there are none of them.
    """

    def __init__(
        self,
        by_partition: dict[int, int],
        share_memory: bool = False,
        terms: Terms = ANY_NODE,
        images: Mapping[int, int] | None = None,
    ) -> None:
        self.by_partition = by_partition
        self.share_memory = share_memory
        self.terms = terms
        self.images = dict(images or {})
        self.spare: dict[int, Answer] = {}
        self.refused: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.by_partition)

    def sample(
        self,
        fraction: float,
        seed: int,
        purpose: str,
        server_round: int,
        *,
        among: Sequence[int] | None = None,
        others_than: Collection[int] = (),
    ) -> list[int]:
        """Return a share of the clients, by default of all, as sorted partition ids; see `choose`.

        `among` is sorted.
        """
        clients = range(len(self)) if among is None else among
        draw = (len(clients), fraction, seed, purpose, server_round)
        places = [clients.index(client) for client in others_than]
        return [clients[place] for place in choose(*draw, others_than=places)]

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


def choose_each(number: int, probability: float, *key: int | str) -> list[int]:
    """Return a sorted Poisson sample of 0..number-1: each with this probability, perhaps none."""
    generator = numpy_generator("clients one by one", *key)
    found: list[int] = (generator.random(number) < probability).nonzero()[0].tolist()
    return found


def _count(number: int, fraction: float) -> int:
    return max(1, round(fraction * number))


def num_nodes(num_clients: int, clients_per_node: int) -> int:
    """Return how many nodes so many clients need; 0 clients per node means 1."""
    return math.ceil(num_clients / max(1, clients_per_node))


def discover_nodes(
    grid: Grid,
    num_clients: int,
    clients_per_node: int = 1,
    patience: float = 0.0,
    terms: Terms = ANY_NODE,
) -> Nodes:
    """Ask every node for its partition id, and whether it can map this process's memory.

    Parameters
    ----------
    num_clients : int
        K, or 0 for as many as the federation has room for.
    clients_per_node : int
        How many clients, of neighbouring partition ids, a node stands for; 0 is 1.
    patience : float
        Seconds in which the nodes of a deployment may still come; a simulation's are there.
    terms : Terms
        What a node has to be; any node, by default.

    Raises
    ------
    ConfigError
        When a simulation has another number of nodes; the message holds the option to type.
    RunError
        When nodes or partitions are missing, a node cannot start, or it does not fit `terms`.
    """
    share, deployed = max(1, clients_per_node), is_deployment(grid)
    if not deployed:
        _check_number(len(set(grid.get_node_ids())), num_clients, share)
    wanted, share_memory = num_nodes(num_clients, share) or 1, can_share() and not deployed
    answers, refused = _wait_for_nodes(
        grid, wanted, patience if deployed else 0.0, terms, share=share_memory
    )
    if refused and not deployed:
        raise RunError(next(iter(refused.values())))
    num_clients = num_clients or share * len(answers)
    needed = num_nodes(num_clients, share)
    found = {said.partition: node for node, said in answers.items() if said.partition < needed}
    if len(found) < needed or not needed:
        why = "".join(f"; {sentence}" for sentence in refused.values())
        if len(answers) < (needed or 1):
            raise RunError(
                f"num-clients = {num_clients} needs {needed or 1} nodes, and {len(answers)} came "
                f"within {patience:g} seconds (round-timeout): start the others, or lower "
                f"num-clients{why}"
            )
        raise RunError(
            f"the {len(answers)} nodes hold {len(found)} different partitions: each node needs "
            f"its own partition-id from 0 to {needed - 1}{why}"
        )
    nodes = Nodes(
        {client: found[client // share] for client in range(num_clients)},
        share_memory and all(said.shares_memory for said in answers.values()),
        terms,
        {partition: answers[node].images for partition, node in found.items()},
    )
    nodes.refused = refused
    return nodes


def _check_number(number: int, num_clients: int, share: int) -> None:
    """Raise ConfigError unless a simulation has as many nodes as its clients need."""
    needed = num_nodes(num_clients or share * number, share)
    if number == needed:
        return
    each = f" with clients-per-node = {share}" if share > 1 else ""
    several = math.ceil(num_clients / number) if number else 0
    fits = several > 1 and num_nodes(num_clients, several) == number
    or_else = f", or set clients-per-node = {several}" if fits else ""
    raise ConfigError(
        f"num-clients = {num_clients}{each} does not match the federation of {number} "
        f'nodes: add --federation-config "num-supernodes={needed}" to flwr run{or_else}'
    )


def welcome_back(grid: Grid, nodes: Nodes, clients_per_node: int) -> list[int]:
    """Let nodes of a deployment that have come since take over the clients of nodes that are gone.

    A node that was started again may have another id. One whose partition another node still holds
    waits. One that was refused is asked again, unless it gave no answer: that takes a minute, and
    it is asked again when it has been away.

    Returns
    -------
    list of int
        The partition ids of those that took over.
    """
    if not is_deployment(grid):
        return []
    there, share = set(grid.get_node_ids()), max(1, clients_per_node)
    nodes.spare = {node: said for node, said in nodes.spare.items() if node in there}
    before = {node: why for node, why in nodes.refused.items() if node in there}
    silent = {node for node, why in before.items() if why.endswith(_SILENT)}
    unknown = there - {*nodes.by_partition.values(), *nodes.spare} - silent
    answers, refused = _ask(grid, sorted(unknown), nodes.terms, share=False, timeout=_SHORT_TIMEOUT)
    nodes.spare |= answers
    nodes.refused = {node: before[node] for node in silent} | refused
    _warn({node: why for node, why in refused.items() if before.get(node) != why})
    back = []
    for node_id, said in sorted(nodes.spare.items()):
        first = share * said.partition
        clients = range(first, min(first + share, len(nodes)))
        if clients and nodes.by_partition[first] not in there:
            nodes.by_partition |= dict.fromkeys(clients, node_id)
            nodes.images[said.partition] = said.images
            del nodes.spare[node_id]
            back.append(said.partition)
    return back


def _wait_for_nodes(
    grid: Grid, wanted: int, patience: float, terms: Terms, *, share: bool
) -> tuple[dict[int, Answer], dict[int, str]]:
    """Return what the nodes answer and why others are refused, both by node id.

    That is once there are nodes for so many partitions, or after so many seconds.
    """
    end, before = time.monotonic() + patience, -1
    answers: dict[int, Answer] = {}
    refused: dict[int, str] = {}
    while True:
        there = set(grid.get_node_ids())
        answers = {node: answer for node, answer in answers.items() if node in there}
        refused = {node: why for node, why in refused.items() if node in there}
        new = sorted(there - answers.keys() - refused.keys())
        found, odd = _ask(grid, new, terms, share=share)
        answers |= found
        refused |= odd
        _warn(odd if patience else {})  # without, it is an error
        here = len({said.partition for said in answers.values() if said.partition < wanted})
        if here >= wanted or time.monotonic() >= end:
            return answers, refused
        if here != before:
            print(f"waiting for nodes: {here} of {wanted} are there", flush=True)
        before = here
        time.sleep(_BETWEEN_LOOKS)


def _warn(refused: Mapping[int, str]) -> None:
    for sentence in refused.values():
        print(f"warning: {sentence}", flush=True)


def _ask(
    grid: Grid, node_ids: Sequence[int], terms: Terms, *, share: bool, timeout: float = _TIMEOUT
) -> tuple[dict[int, Answer], dict[int, str]]:
    """Return by node id what nodes answer, and why those are refused that do not fit the terms."""
    if not node_ids:
        return {}, {}
    content = RecordDict()
    if share:
        content["arrays"] = pack(torch.arange(8), SHARED)
    questions = [Message(content, node_id, MessageType.QUERY) for node_id in node_ids]
    found: dict[int, Answer] = {}
    refused = {node: f"the node {node} {_SILENT}" for node in node_ids}
    try:
        for reply in replies_as_they_come(grid, questions, timeout):
            node_id = reply.metadata.src_node_id
            if reply.has_error():
                # Ray's reason is a traceback, whose last line is the error.
                lines = (reply.error.reason or "").strip().splitlines()
                reason = lines[-1] if lines else "no reason given"
                refused[node_id] = f"a client did not start: {reason}"
                continue
            try:
                found[node_id] = terms.read(reply)
                del refused[node_id]
            except NodeRefusedError as error:
                refused[node_id] = str(error)
    finally:
        for arrays in content.array_records.values():
            release(arrays, SHARED)
    return found, refused
