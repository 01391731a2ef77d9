"""The Flower ClientApp: one short handler per message type; the work is fedta_app's."""

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from engine.records import number, whole
from engine.transport import pack, transport_of, unpack
from fedta_app.config import RunConfig
from fedta_app.local import train_client
from fedta_app.workspace import Workspace, shared_workspace

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell which partition of the data this node holds."""
    node = ConfigRecord({"partition-id": whole(context.node_config, "partition-id")})
    return Message(RecordDict({"config": node}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global weights on this node's images and return the update."""
    task = message.content.config_records["config"]
    workspace = _workspace(context, task)
    result = train_client(
        workspace,
        unpack(message.content.array_records["arrays"]),
        partition_id=whole(context.node_config, "partition-id"),
        server_round=whole(task, "server-round"),
        lr=number(task, "lr"),
    )
    metrics = MetricRecord({"num-examples": result.num_examples, "train-loss": result.loss})
    arrays = pack(result.update, transport_of(message))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _workspace(context: Context, task: ConfigRecord) -> Workspace:
    """Return this process's workspace; the server says how many clients share the data."""
    config = RunConfig.from_mapping(context.run_config)
    workspace = shared_workspace(config.with_values(num_clients=whole(task, "num-clients")))
    if workspace.weights.fingerprint != task["layout"]:
        raise ValueError("this client's model has other parameters than the server's")
    return workspace
