"""The grid that calls the ClientApp: what a node keeps, and what ten thousand cost."""

from flwr.app import ConfigRecord, Message, RecordDict

from engine.inprocess import InProcessGrid


def counting(message, context):
    """Count, in the node's own state, how often it was asked."""
    if message.metadata.message_type == "train":
        record = context.state.config_records.get("asked") or ConfigRecord({"times": 0})
        record["times"] = int(record["times"]) + 1
        context.state["asked"] = record
    return Message(
        RecordDict({"asked": context.state.get("asked", ConfigRecord())}), reply_to=message
    )


def ask(grid, node, message_type):
    (reply,) = grid.send_and_receive([Message(RecordDict(), node, message_type)])
    return dict(reply.content["asked"])


def test_a_node_keeps_its_state_and_its_partition():
    grid = InProcessGrid(counting, 3, {})
    first, second, _ = grid.get_node_ids()
    assert [ask(grid, first, "train") for _ in range(2)] == [{"times": 1}, {"times": 2}]
    assert ask(grid, second, "train") == {"times": 1}
    assert ask(grid, first, "query") == {"times": 2}


def test_nodes_without_state_cost_nothing():
    grid = InProcessGrid(counting, 10_000, {})
    for node in grid.get_node_ids():
        ask(grid, node, "query")
    assert not grid._contexts


def test_a_client_that_fails_answers_with_its_error():
    def failing(message, context):
        raise ValueError("no data")

    grid = InProcessGrid(failing, 1, {})
    (reply,) = grid.send_and_receive([Message(RecordDict(), 2, "query")])
    assert reply.error.reason == "ValueError: no data"
