"""Which nodes a run takes: those of its version, and each for the partition that it may claim."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedta_app.errors import ConfigError, RunError
from fedta_app.runs.provenance import code_version
from server_app.loop import run_rounds
from strategies import nodes as nodes_module
from strategies.node_answers import Terms, read_nodes_file
from strategies.nodes import discover_nodes, welcome_back
from tests.runs import read_summary
from tests.server_app.test_deployment import grid_of


def test_a_registered_node_stands_for_its_own_partition_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, config = grid_of(tmp_path)
    (tmp_path / "nodes.toml").write_text("100 = 0\n101 = 1\n102 = 2\n")
    config = config.with_values(nodes_file=str(tmp_path / "nodes.toml"))
    terms = Terms(read_nodes_file(config.nodes_file))
    grid.nodes[101], grid.nodes[102] = {"partition-id": 2}, {"partition-id": 1}
    said = r"the node 101 \(partition-id = 2\) is refused: nodes-file gives it partition 1"
    with pytest.raises(RunError, match=said):
        run_rounds(grid, config)
    assert not any(kind.startswith("train") for _, kind in grid.asked)
    grid.nodes[101], grid.nodes[102] = {"partition-id": 1}, {"partition-id": 2}
    grid.nodes[666] = {"partition-id": 0}  # somebody who would like to be node 100
    found = discover_nodes(grid, 3, patience=1, terms=terms)
    assert found.by_partition == {0: 100, 1: 101, 2: 102}
    assert "node 666 (partition-id = 0) is refused: nodes-file does not" in capsys.readouterr().out
    del grid.nodes[100]
    assert welcome_back(grid, found, 1) == [] and 666 in found.refused
    assert welcome_back(grid, found, 1) == [] and found.by_partition[0] == 100
    assert "666" not in capsys.readouterr().out, "said once"
    grid.nodes[100] = {"partition-id": 0}
    run_rounds(grid, config)
    assert read_summary(tmp_path, config)["status"] == "finished"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("7 = 'zero'", "its entry '7' is not of the form node-id = partition-id"),
        ("a = 1", "its entry 'a' is not of the form node-id = partition-id"),
        ("1 = 0\n01 = 1", "it has a node more than once"),
        ("7 = 1\n8 = 1", "it gives a partition to more than one node"),
        ("7 = ", "is not valid TOML"),
        ("", "it has no node yet"),
    ],
)
def test_a_nodes_file_that_cannot_be_used(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "nodes.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_nodes_file(str(path))


def test_a_node_of_another_version_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, config = grid_of(tmp_path)
    answer = grid._answer
    old: set[int] = {102}

    def another(message: Message) -> Message:
        reply = answer(message)
        if message.metadata.dst_node_id in old and message.metadata.message_type == "query":
            reply.content.config_records["config"]["code"] = "0.1.0 (code 0123456789ab)"
        return reply

    monkeypatch.setattr(grid, "_answer", another)
    with pytest.raises(RunError, match=r"node 102 .* runs fedta 0.1.0 \(code 0123456789ab\), and"):
        run_rounds(grid, config)
    old.clear()
    found = discover_nodes(grid, 3)
    old.add(202)
    del grid.nodes[102]
    grid.nodes[202] = {"partition-id": 2}
    assert welcome_back(grid, found, 1) == [], "the run goes on without it"
    assert "warning: the node 202 (partition-id = 2) runs fedta 0.1.0" in capsys.readouterr().out
    old.clear()  # somebody does as the sentence says, and its key has the same id as before
    assert welcome_back(grid, found, 1) == [2] and found.by_partition[2] == 202


def test_a_node_that_comes_is_waited_for_while_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes_module, "_BETWEEN_LOOKS", 0.0)
    grid, _ = grid_of(tmp_path)
    late = grid.nodes.pop(101)
    grid.nodes |= {500: {"lr": 0.1, "partition-id": 1}, 501: {"partition-id": 7}}

    def happen(look: int) -> None:
        if look == 4:
            grid.nodes[101] = late

    grid.before_looking = happen
    found = discover_nodes(grid, 3, patience=60)
    assert found.by_partition == {0: 100, 1: 101, 2: 102}
    said = capsys.readouterr().out
    assert said.count("waiting for nodes: 2 of 3") == 1
    assert said.count("a client did not start: --node-config cannot set lr") == 1


def test_one_that_cannot_start_does_not_keep_another_from_coming_back(tmp_path: Path) -> None:
    grid, _ = grid_of(tmp_path)
    found = discover_nodes(grid, 3)
    del grid.nodes[101]
    grid.nodes |= {400: {"partition-id": 1, "lr": 0.1}, 401: {"partition-id": 1}}
    assert welcome_back(grid, found, 1) == [1] and found.by_partition[1] == 401
    assert list(found.refused) == [400]


@pytest.mark.parametrize("reason", ["", " \n "])
def test_a_node_that_fails_without_a_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    grid, _ = grid_of(tmp_path)
    answer = grid._answer

    def broken(message: Message) -> Message:
        failed = message.metadata.dst_node_id == 102
        error = Message(Error(code=0, reason=reason), reply_to=message)
        return error if failed else answer(message)

    monkeypatch.setattr(grid, "_answer", broken)
    with pytest.raises(RunError, match=r"a client did not start: no reason given"):
        discover_nodes(grid, 3)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"partition-id": "0"},
        {"partition-id": -1, "images": 0},
        {"partition-id": True, "images": 0},
        {"partition-id": 0, "images": 2**40},
        {"partition-id": 0, "images": -1},
        {"partition-id": 0, "images": 0.5},
    ],
)
def test_a_node_that_answers_nonsense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    grid, _ = grid_of(tmp_path)
    answer = grid._answer

    def nonsense(message: Message) -> Message:
        content = RecordDict({"config": ConfigRecord({"code": code_version(), **said})})
        odd = Message(content, reply_to=message)
        return odd if message.metadata.dst_node_id == 100 else answer(message)

    monkeypatch.setattr(grid, "_answer", nonsense)
    with pytest.raises(RunError, match=r"the node 100 .* (images of its own|as its partition-id)"):
        discover_nodes(grid, 3)
