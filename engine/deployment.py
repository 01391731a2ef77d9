"""Flower's deployment engine, where every node is a process on a machine of its own.

A simulation's nodes are all there from the beginning, work on one machine and see all data. A
deployment's nodes come late, go and come again; each has its own clients, paths and device.
"""

import sys
from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from engine.inprocess import ONE_PROCESS, InProcessGrid
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.training.datasets import of_nodes

# Keys of the configuration that are a node's own business: set by --node-config.
NODE_KEYS = ("data-dir", "image-folder", "cache-dir", "results-dir", "device", "threads")
_PARTITION = "partition-id"
_FLOWERS = (_PARTITION, "num-partitions", ONE_PROCESS)


def is_deployment(grid: Grid) -> bool:
    """Return whether nodes are on machines of their own, and may come later or again."""
    # Flower does not document the grid of its simulation as public; only this function uses it.
    # Importing it takes seconds, and where nobody has, no grid is one.
    loaded = sys.modules.get("flwr.superlink.grid")
    simulated = loaded is not None and isinstance(grid, loaded.InMemoryGrid)
    return not (simulated or isinstance(grid, InProcessGrid))


def on_servers_machine(context: Context) -> bool:
    """Return whether this client works for a simulation, so that it may map the server's memory.

    A client of a deployment never does, whatever a message says: the handle would name memory of
    a process that may be gone, or somebody else's.
    """
    ray = sys.modules.get("ray")
    return ONE_PROCESS in context.node_config or (ray is not None and ray.is_initialized())


def node_partition(context: Context) -> int:
    """Return the partition id of a node.

    Raises
    ------
    ConfigError
        When it has none, or no whole number.
    """
    found = context.node_config.get(_PARTITION)
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise ConfigError(
            f"{_PARTITION} = {found!r} is not allowed for a node: give it its own whole number "
            f'from 0, as in flower-supernode --node-config "{_PARTITION}=0"'
        )
    return found


def check_own_client(context: Context, client: int, clients_per_node: int) -> None:
    """Refuse a client that this node does not stand for: its data are not this node's to use.

    Raises
    ------
    ConfigError
        Naming the clients that it stands for.
    """
    share = max(1, clients_per_node)
    first = share * node_partition(context)
    if not first <= client < first + share:
        own = f"client {first}" if share == 1 else f"clients {first} to {first + share - 1}"
        raise ConfigError(f"this node stands for {own}, and was asked for client {client}")


def node_values(node_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the configuration that a node sets for itself.

    Raises
    ------
    ConfigError
        For a key that is not a node's to set.

    Examples
    --------
    >>> node_values({"partition-id": 3, "data-dir": "/data"})
    {'data-dir': '/data'}
    """
    own = {key: value for key, value in node_config.items() if key not in _FLOWERS}
    if unknown := sorted(own.keys() - set(NODE_KEYS)):
        allowed = ", ".join((_PARTITION, *NODE_KEYS))
        raise ConfigError(f"--node-config cannot set {unknown[0]}; allowed are: {allowed}")
    return own


def own_node(config: RunConfig, context: Context) -> int | None:
    """Return the partition id of a node that has images of its own, None where none has."""
    return node_partition(context) if of_nodes(config) else None


def config_of(context: Context) -> RunConfig:
    """Return the configuration of the run as this node reads it, with its own paths and device."""
    return RunConfig.from_mapping({**context.run_config, **node_values(context.node_config)})
