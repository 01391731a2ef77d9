"""Nodes on machines of their own: late, gone, back, set up wrongly; run in one process."""

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from client_app.app import app as client_app
from engine import deployment
from engine.deployment import ONE_PROCESS, check_own_client, node_values, on_servers_machine
from engine.inprocess import InProcessGrid
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError, RunError
from server_app.loop import run_rounds
from strategies import nodes as nodes_module
from strategies.nodes import Nodes, discover_nodes, welcome_back
from tests.runs import read_summary, summary_of

RUN = {
    "name": "test", "num-clients": 3, "fraction-train": 1.0, "num-server-rounds": 4,
    "local-steps": 1, "eval-every": 2, "eval-size": 20, "threads": 1, "head": "ridge",
    "mask-rule": "least-sensitive", "calibration-rounds": 1, "calibration-examples": 4,
    "strategy": "scaffold", "missing-clients": "go-on", "round-timeout": 0.5,
}  # fmt: skip


class DeployedGrid(Grid):
    """Nodes by id with their configurations, which a test may add and take away."""

    def __init__(self, values: dict[str, Any], nodes: dict[int, dict[str, Any]]) -> None:
        self._inner = InProcessGrid(client_app, 0, values)
        self._values = values
        self.nodes = nodes
        self.before_looking: Callable[[int], None] = lambda number: None
        self.looks = 0
        self._replies: list[Message] = []
        self.asked: list[tuple[int, str]] = []

    set_run = property(lambda self: self._inner.set_run)  # type: ignore[assignment]
    run = property(lambda self: self._inner.run)  # type: ignore[assignment]
    create_message = property(lambda self: self._inner.create_message)  # type: ignore[assignment]

    def send_and_receive(self, messages: Any, *, timeout: Any = None) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        self.before_looking(self.looks)
        self.looks += 1
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = secrets.token_hex(8)
            pushed.append(message.metadata.message_id)
            self._replies.append(self._answer(message))
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found, self._replies = self._replies, []
        return found

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.asked.append((node, message.metadata.message_type))
        if node not in self.nodes:
            return Message(Error(code=3, reason="Node Unavailable"), reply_to=message)
        context = Context(1, node, self.nodes[node], RecordDict(), self._values)
        try:
            return client_app(message=message, context=context)
        except Exception as error:
            return Message(Error(code=0, reason=str(error)), reply_to=message)


def grid_of(folder: Path, **changes: Any) -> tuple[DeployedGrid, RunConfig]:
    values = {**RUN, **changes, "results-dir": str(folder)}
    return DeployedGrid(values, {100 + p: {"partition-id": p} for p in (2, 0, 1)}), (
        RunConfig.from_mapping(values)
    )


def test_the_same_weights_as_in_one_process_by_wire(tmp_path: Path) -> None:
    grid, config = grid_of(tmp_path / "deployed")
    run_rounds(grid, config)
    deployed = read_summary(tmp_path / "deployed", config)
    here = summary_of(tmp_path / "here", {**RUN, "engine": "in-process"})
    assert deployed["transport"] == "wire"
    assert deployed["final-weights-sha256"] == here["final-weights-sha256"]


def test_a_deployment_is_told_how_many_clients_there_are(tmp_path: Path) -> None:
    grid, config = grid_of(tmp_path, **{"num-clients": 0})
    with pytest.raises(ConfigError, match="num-clients = 0 is not allowed in a deployment"):
        run_rounds(grid, config)
    assert not grid.asked


def test_a_node_that_is_gone_fails_and_takes_its_clients_over_when_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, config = grid_of(tmp_path)

    def happen(look: int) -> None:
        trained = sum(kind == "train" for _, kind in grid.asked)
        if trained == 3:  # after the first round
            grid.nodes.pop(101, None)
        if trained >= 6:
            grid.nodes[201] = {"partition-id": 1}

    grid.before_looking = happen
    run_rounds(grid, config)
    assert "the node with partition-id = 1 is back" in capsys.readouterr().out
    rounds = [node for node, kind in grid.asked if kind == "train"]
    assert [sorted(rounds[n : n + 3]) for n in range(0, 12, 3)] == [
        [100, 101, 102], [100, 101, 102], [100, 102, 201], [100, 102, 201],
    ]  # fmt: skip
    assert read_summary(tmp_path, config)["status"] == "finished"


def test_nodes_that_come_late_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes_module, "_BETWEEN_LOOKS", 0.0)
    grid, _ = grid_of(tmp_path)
    later = grid.nodes
    grid.nodes = {}

    def happen(look: int) -> None:
        if look in (2, 3, 5):
            node = min(later)
            grid.nodes[node] = later.pop(node)

    grid.before_looking = happen
    found = discover_nodes(grid, 3, patience=60)
    assert found.by_partition == {0: 100, 1: 101, 2: 102} and not found.share_memory
    said = [line for line in capsys.readouterr().out.splitlines() if "waiting" in line]
    assert said == [f"waiting for nodes: {n} of 3 are there" for n in (0, 1, 2)]
    grid.nodes = {100: {"partition-id": 0}}
    with pytest.raises(RunError, match="needs 3 nodes, and 1 came within 0 seconds"):
        discover_nodes(grid, 3, patience=0)
    grid.nodes = {100 + p: {"partition-id": p} for p in (0, 3, 1)}
    assert discover_nodes(grid, 2).by_partition == {0: 100, 1: 101}, "others are spare"
    with pytest.raises(RunError, match=r"3 nodes hold 2 different partitions.*from 0 to 2"):
        discover_nodes(grid, 3)


def test_who_claims_a_partition_that_another_node_holds_waits(tmp_path: Path) -> None:
    grid, _ = grid_of(tmp_path)
    found = discover_nodes(grid, 3)
    grid.nodes[500] = {"partition-id": 1}
    grid.nodes[501] = {"partition-id": 7}
    for _ in range(3):
        assert welcome_back(grid, found, 1) == []
    assert found.by_partition[1] == 101
    assert sum(node == 500 for node, _ in grid.asked) == 1, "asked once"
    del grid.nodes[101]
    assert welcome_back(grid, found, 1) == [1]
    assert found.by_partition == {0: 100, 1: 500, 2: 102}


def test_a_node_stands_for_several_clients(tmp_path: Path) -> None:
    grid, _ = grid_of(tmp_path, **{"clients-per-node": 2})
    found = discover_nodes(grid, 5, 2)
    del grid.nodes[102]
    grid.nodes[300] = {"partition-id": 2}
    assert welcome_back(grid, found, 2) == [2]
    assert found.by_partition == {0: 100, 1: 100, 2: 101, 3: 101, 4: 300}


def test_one_that_cannot_start_does_not_hold_up_the_others(tmp_path: Path) -> None:
    grid, _ = grid_of(tmp_path)
    found = discover_nodes(grid, 3)
    grid.nodes[600] = {}
    assert welcome_back(grid, found, 1) == []


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({}, "partition-id = None is not allowed for a node"),
        ({"partition-id": "0"}, "partition-id = '0' is not allowed for a node"),
        ({"partition-id": 0, "lr": 1.0}, "--node-config cannot set lr; allowed are: partition-id"),
        ({"partition-id": 0, "threads": -1}, "threads is a whole number"),
    ],
)
def test_a_node_that_is_set_up_wrongly_says_so(
    tmp_path: Path, node: dict[str, Any], said: str
) -> None:
    grid, config = grid_of(tmp_path)
    grid.nodes[100] = node
    with pytest.raises(RunError, match=f"a client did not start: .*{said}"):
        run_rounds(grid, config)


def test_a_node_has_its_own_paths(tmp_path: Path) -> None:
    grid, config = grid_of(tmp_path / "server")
    for node, own in grid.nodes.items():
        own["results-dir"] = str(tmp_path / str(node))
    run_rounds(grid, config)
    assert read_summary(tmp_path / "server", config)["status"] == "finished"
    assert not (tmp_path / "server/test/seed0/clients").exists(), "the server keeps no memory"
    for node in grid.nodes:
        kept = [path.name for path in (tmp_path / str(node) / "test/seed0/clients").iterdir()]
        assert kept == [str(node - 100)]


class TestClients:
    def context(self, **node: Any) -> Context:
        return Context(1, 1, node, RecordDict(), {})

    def test_only_a_simulation_shares_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not on_servers_machine(self.context())
        assert on_servers_machine(self.context(**{ONE_PROCESS: True}))

        class Ray:
            is_initialized = staticmethod(lambda: True)

        monkeypatch.setitem(deployment.sys.modules, "ray", Ray)  # type: ignore[arg-type]
        assert on_servers_machine(self.context())

    @pytest.mark.parametrize("transport", ["fedta.shared", "fedta.memory"])
    def test_a_node_takes_vectors_by_wire_only(self, tmp_path: Path, transport: str) -> None:
        grid, config = grid_of(tmp_path, **{"missing-clients": "refuse"})
        original = nodes_module.Message

        def hostile(content: RecordDict, *rest: Any, **named: Any) -> Message:
            for settings in content.config_records.values():
                if "transport" in settings:
                    settings["transport"] = transport
            return original(content, *rest, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("strategies.exchange.Message", hostile)
            with pytest.raises(RunError, match="this node takes vectors by wire only"):
                run_rounds(grid, config)

    def test_the_nodes_do_not_choose_the_transport(self, tmp_path: Path) -> None:
        """Not even where all of them say that they see the server's memory."""
        grid, _ = grid_of(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("client_app.app.on_servers_machine", lambda context: True)
            nodes = discover_nodes(grid, 3, patience=1)
        assert len(nodes) == 3 and not nodes.share_memory

    def test_a_node_trains_no_client_of_another(self) -> None:
        check_own_client(self.context(**{"partition-id": 2}), 2, 0)
        check_own_client(self.context(**{"partition-id": 2}), 5, 2)
        with pytest.raises(ConfigError, match="stands for client 2, and was asked for client 1"):
            check_own_client(self.context(**{"partition-id": 2}), 1, 1)
        with pytest.raises(ConfigError, match="clients 4 to 5, and was asked for client 3"):
            check_own_client(self.context(**{"partition-id": 2}), 3, 2)

    def test_keys_that_are_a_nodes_own(self) -> None:
        assert node_values({"partition-id": 1, "device": "cpu"}) == {"device": "cpu"}
        with pytest.raises(ConfigError, match="cannot set seed; allowed are: partition-id, data-"):
            node_values({"partition-id": 1, "seed": 3})


def test_nodes_of_a_simulation_are_not_asked_again() -> None:
    inner = InProcessGrid(client_app, 3, {})
    assert welcome_back(inner, Nodes({0: 2, 1: 3, 2: 4}), 1) == []
