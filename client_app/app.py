"""The Flower ClientApp: one short handler per message type; the work is fedta_app's."""

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from engine.records import number, whole
from engine.shared_memory import SharingError
from engine.transport import outbox, pack, unpack
from fedta_app.client_memory import ClientMemory, bytes_vector, client_memory, vector_bytes
from fedta_app.config import RunConfig
from fedta_app.training.client import LocalResult, train_client, train_head
from fedta_app.training.head_fit import head_statistics
from fedta_app.training.scoring import client_batches, own_mask, scores
from fedta_app.training.workspace import shared_workspace

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Tell which place among the nodes this one has, and whether it reads what was shared."""
    try:
        shares = all(len(unpack(arrays)) > 0 for arrays in message.content.array_records.values())
    except SharingError:
        shares = False
    place = whole(context.node_config, "partition-id")
    node = ConfigRecord({"partition-id": place, "shares-memory": shares})
    return Message(RecordDict({"config": node}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global weights on the client's images and return the update."""
    memory, task = _prepare(message, context)
    result = train_client(
        memory.workspace,
        unpack(message.content.array_records["arrays"]),
        partition_id=whole(task, "partition-id"),
        server_round=whole(task, "server-round"),
        lr=number(task, "lr"),
        down=memory.mask(str(task["down"])),
        up=memory.mask(str(task["up"])),
        outbox=lambda update: outbox(update, str(task["transport"])),
    )
    return _trained(message, result)


@app.train("probe")
def probe(message: Message, context: Context) -> Message:
    """Train the head alone and return its update."""
    memory, task = _prepare(message, context)
    result = train_head(
        memory.workspace,
        unpack(message.content.array_records["arrays"]),
        partition_id=whole(task, "partition-id"),
        server_round=whole(task, "server-round"),
        lr=number(task, "lr"),
    )
    return _trained(message, result)


@app.train("head")
def head(message: Message, context: Context) -> Message:
    """Return the sums from which the ridge head follows."""
    memory, task = _prepare(message, context)
    images = memory.workspace.head_data(whole(task, "partition-id"))
    return _reply(message, head_statistics(memory.workspace, images).to_vector())


@app.train("calibrate")
def calibrate(message: Message, context: Context) -> Message:
    """Return the client's sensitivities under the mask of the rounds so far."""
    memory, task = _prepare(message, context)
    batches = client_batches(memory.workspace, whole(task, "partition-id"))
    mask = memory.mask(str(task["down"]))
    found = scores(memory.workspace, batches, mask, whole(task, "server-round"))
    return _reply(message, found)


@app.train("mask")
def mask(message: Message, context: Context) -> Message:
    """Calibrate the client's own mask, keep it, and return it as bits."""
    memory, task = _prepare(message, context)
    bits = own_mask(memory.workspace, whole(task, "partition-id")).to_bits()
    memory.store.put(bits)
    return _reply(message, bytes_vector(bits))


def _prepare(message: Message, context: Context) -> tuple[ClientMemory, ConfigRecord]:
    """Return this process's memory, with what came along learnt and the head in the model."""
    task = message.content.config_records["config"]
    config = RunConfig.from_mapping(context.run_config)
    # The server says how many clients share the data: num-clients may be 0, "as many as there are".
    workspace = shared_workspace(config.with_values(num_clients=whole(task, "num-clients")))
    if workspace.layout != task["layout"]:
        raise ValueError("this client's model has other parameters or weights than the server's")
    memory = client_memory(workspace)
    blobs = message.content.array_records.get("blobs", ArrayRecord())
    memory.learn([vector_bytes(unpack(blobs, name)) for name in blobs])
    memory.load_head(str(task["head"]))
    return memory, task


def _trained(message: Message, result: LocalResult) -> Message:
    metrics = MetricRecord({"num-examples": result.num_examples, "train-loss": result.loss})
    return _reply(message, result.update, metrics)


def _reply(message: Message, vector: Tensor, metrics: MetricRecord | None = None) -> Message:
    transport = str(message.content.config_records["config"]["transport"])
    content = RecordDict({"arrays": pack(vector, transport)})
    if metrics is not None:
        content["metrics"] = metrics
    return Message(content, reply_to=message)
