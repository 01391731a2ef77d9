"""What a node says of itself when it is asked, and whether a run takes it."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flwr.app import Message

from fedta_app.errors import ConfigError, RunError, shortened
from fedta_app.files import expanded, read_toml
from fedta_app.runs.provenance import code_version

_MOST_IMAGES = 2**31 - 1


class NodeRefusedError(RunError):
    """A node that a run does not take; the message is one sentence."""


class Answer(NamedTuple):
    """What a node says of itself.

    Attributes
    ----------
    partition : int
        The partition id that it stands for.
    shares_memory : bool
        Whether it could map the memory that the question named.
    images : int
        How many training images of its own it has; 0 where it reads those of its clients from a
        data set that every node has.
    """

    partition: int
    shares_memory: bool
    images: int


@dataclass(frozen=True)
class Terms:
    """What a node has to be so that a run takes it.

    Attributes
    ----------
    partitions : dict from node id to partition id, or None
        Who may stand for which partition; None where nodes are believed. Flower gives a key that
        is registered one node id for ever.
    classes : tuple of str
        The classes of images of their own, in the order of the labels; empty where nodes have none.
    """

    partitions: Mapping[int, int] | None = None
    classes: tuple[str, ...] = ()

    def read(self, reply: Message) -> Answer:
        """Return what a node answers.

        Raises
        ------
        NodeRefusedError
            When it is of another version, claims another's partition, has other classes, or says
            what no node says.
        """
        node = reply.metadata.src_node_id
        said: Mapping[str, Any] = reply.content.config_records.get("config", {})
        partition = said.get("partition-id")
        who = f"the node {node} (partition-id = {reprlib.repr(partition)})"
        if (theirs := said.get("code")) != (ours := code_version()):
            raise NodeRefusedError(
                f"{who} runs fedta {shortened(theirs)}, and the server fedta {ours}: "
                "install the same there"
            )
        images, fewest = said.get("images"), 1 if self.classes else 0
        if not (type(partition) is int and partition >= 0):
            raise NodeRefusedError(f"{who} has no whole number from 0 as its partition-id")
        if not (type(images) is int and fewest <= images <= _MOST_IMAGES):
            claimed = reprlib.repr(images)
            raise NodeRefusedError(f"{who} says that it has {claimed} images of its own")
        if self.partitions is not None and self.partitions.get(node) != partition:
            known = self.partitions.get(node)
            its = "does not have it" if known is None else f"gives it partition {known}"
            raise NodeRefusedError(f"{who} is refused: nodes-file {its}")
        if self.classes and (classes := _listed(said.get("classes"))) != self.classes:
            raise NodeRefusedError(
                f"{who} has the classes {_some(classes)}, and the server {_some(self.classes)}: "
                "both need a folder train/<class> for each, which may be empty on a node"
            )
        return Answer(partition, said.get("shares-memory") is True, images)


ANY_NODE = Terms()


def read_nodes_file(name: str) -> dict[int, int] | None:
    r"""Return the partition id of each node id in a file of the key `nodes-file`; None for no name.

    Raises
    ------
    ConfigError
        When the file is missing or empty, or has other entries than ``node-id = partition-id``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "nodes.toml"
    >>> _ = path.write_text("7201 = 0\n4452 = 1\n")
    >>> read_nodes_file(str(path))
    {7201: 0, 4452: 1}
    """
    if not name:
        return None
    what = f"nodes-file = {name!r}"
    path = expanded(name, what)
    if not path.is_file():
        raise ConfigError(f"{what} is not allowed: there is no such file")
    entries: Mapping[str, Any] = read_toml(path)
    if not entries:
        raise ConfigError(f"{what} is not allowed: it has no node yet (deployment/register.sh)")
    if odd := [key for key, value in entries.items() if not (key.isdecimal() and _whole(value))]:
        raise ConfigError(
            f"{what} is not allowed: its entry {odd[0]!r} is not of the form node-id = partition-id"
        )
    if len({int(key) for key in entries}) < len(entries):
        raise ConfigError(f"{what} is not allowed: it has a node more than once")
    if len(set(entries.values())) < len(entries):
        raise ConfigError(f"{what} is not allowed: it gives a partition to more than one node")
    return {int(key): int(value) for key, value in entries.items()}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _listed(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(shortened(name, 40) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "of no folder"
