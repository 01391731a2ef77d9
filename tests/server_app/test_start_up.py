"""What a run does side by side before its first round."""

import threading
from typing import Any

import pytest

import server_app.loop
from client_app.app import app as clients
from engine.inprocess import InProcessGrid
from fedta_app.config import RunConfig
from fedta_app.errors import DataError, RunError
from server_app.loop import nodes_and_workspace
from strategies import Nodes

CONFIG = {"num-clients": 3, "threads": 1, "engine": "in-process"}


def grid_of(values: dict[str, Any]) -> InProcessGrid:
    return InProcessGrid(clients, 3, values)


def test_the_workspace_is_built_while_the_nodes_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = threading.Event()
    workspace = object()

    def build(config: RunConfig, node: int | None) -> Any:
        built.set()
        return workspace

    def wait(*_: Any) -> Nodes:
        assert built.wait(timeout=20)
        return Nodes({0: 7, 1: 8, 2: 9})

    monkeypatch.setattr(server_app.loop, "shared_workspace", build)
    monkeypatch.setattr(server_app.loop, "discover_nodes", wait)
    nodes, found = nodes_and_workspace(grid_of(CONFIG), RunConfig.from_mapping(CONFIG))
    assert len(nodes) == 3 and found is workspace


def test_without_a_number_of_clients_the_nodes_are_counted_first() -> None:
    values = {**CONFIG, "num-clients": 0}
    nodes, workspace = nodes_and_workspace(grid_of(values), RunConfig.from_mapping(values))
    assert len(nodes) == workspace.config.num_clients == 3


def test_missing_nodes_are_said_before_data_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_data(*_: Any) -> None:
        raise DataError("no data")

    def no_nodes(*_: Any) -> None:
        raise RunError("no nodes")

    config = RunConfig.from_mapping(CONFIG)
    monkeypatch.setattr(server_app.loop, "shared_workspace", no_data)
    with pytest.raises(DataError, match="no data"):
        nodes_and_workspace(grid_of(CONFIG), config)
    monkeypatch.setattr(server_app.loop, "discover_nodes", no_nodes)
    with pytest.raises(RunError, match="no nodes"):
        nodes_and_workspace(grid_of(CONFIG), config)
