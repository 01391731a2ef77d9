"""The Flower ClientApp: one short handler per message type, around functions of `fedta_app`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from client_app.secure import secured, secured_update, shares
from engine.client_memory import (
    ClientMemory,
    MemoryLostError,
    Setup,
    bytes_vector,
    client_memory,
    vector_bytes,
)
from engine.deployment import (
    check_own_client,
    config_of,
    node_partition,
    on_servers_machine,
    own_node,
)
from engine.shared_memory import SharingError, free_before
from engine.transport import SHARED, WIRE, outbox, pack_many, unpack, unpack_many
from fedta_app.algorithms import make_algorithm
from fedta_app.device.exhausted import exhausted
from fedta_app.errors import disk_sentence
from fedta_app.keys.algorithm import ON_HEAD
from fedta_app.runs.memory import peaks, reset_peaks
from fedta_app.runs.provenance import code_version
from fedta_app.training.attacks import attack_of, poisoned_sums
from fedta_app.training.client import LocalResult, load_weights, train_client, train_head
from fedta_app.training.datasets import find_dataset
from fedta_app.training.head_fit import head_images, head_statistics
from fedta_app.training.scoring import client_batches, own_mask, scores
from fedta_app.training.workspace import shared_workspace


def report_memory(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Add to the reply how much memory this process took for it.

    On the in-process engine the clients live in the server's process, which measures itself.
    """
    training = message.metadata.message_type.startswith("train")
    if context.run_config.get("engine") == "in-process" or not training:
        return call_next(message, context)
    reset_peaks()
    reply = call_next(message, context)
    reply.content["peaks"] = MetricRecord({f"client_{name}": mb for name, mb in peaks().items()})
    return reply


def report_machine(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Reply with a reason where this client's disk, memory or GPU fails.

    On the server's machine they are the server's too, and the run stops: the client is not one
    that failed by itself, and the next one would fail as quickly.
    """
    try:
        return call_next(message, context)
    except SharingError:
        raise
    except Exception as error:
        lost, reason = isinstance(error, MemoryLostError), exhausted(error)
        if lost:
            reason = str(error)
        elif isinstance(error, OSError):
            reason = disk_sentence(error)
        if not reason:
            raise
        refusal = ConfigRecord({"reason": reason, "memory-lost": lost})
        return Message(RecordDict({"refusal": refusal}), reply_to=message)


app = ClientApp(mods=[report_memory, report_machine])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Return the node's partition id, its code, and whether it can map the server's memory.

    Where nodes have images of their own, also how many, and their classes.
    """
    try:
        shares = on_servers_machine(context) and all(
            len(unpack(arrays, SHARED)) > 0 for arrays in message.content.array_records.values()
        )
    except SharingError:
        shares = False
    config = config_of(context)  # a node that is set up wrongly says so at once
    about: dict[str, Any] = {"images": 0}
    if own_node(config, context) is not None:
        dataset = find_dataset(config, of_node=True)
        about = {"images": dataset.images, "classes": list(dataset.class_names)}
    node = {"partition-id": node_partition(context), "shares-memory": shares}
    said = ConfigRecord({**node, **about, "code": code_version()})
    return Message(RecordDict({"config": said}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global weights on the client's images and return the algorithm's reply."""
    memory, settings = _prepare(message, context)
    setup, client = Setup.from_config(settings), int(settings["partition-id"])
    received = _received(message, settings)
    config = memory.workspace.config
    result = train_client(
        memory.workspace,
        received.pop("vector"),
        partition_id=client,
        server_round=int(settings["server-round"]),
        lr=float(settings["lr"]),
        local_steps=int(settings.get("local-steps", config.local_steps)),
        batch_size=int(settings.get("batch-size", config.batch_size)),
        algorithm=make_algorithm(config.strategy, vars(config)),
        received=received,
        memory=memory.recall(client, setup.memory, setup.kept),
        down=memory.mask(setup.down),
        up=memory.mask(setup.up),
        outbox=lambda update: (
            update
            if config.secure_aggregation
            else outbox(update, str(settings["transport"]), _number(settings))
        ),
    )
    # Before the reply is packed: a disk that refuses it leaves nothing behind to be released.
    digest = memory.memorise(client, result.memory)
    update = secured_update(config, settings, result.update, result.num_examples)
    reply = _trained(message, replace(result, update=update))
    if digest:
        reply.content["memory"] = ConfigRecord({"digest": digest})
    return reply


@app.train("probe")
def probe(message: Message, context: Context) -> Message:
    """Train the head alone and return its update."""
    memory, settings = _prepare(message, context)
    result = train_head(
        memory.workspace,
        _received(message, settings)["vector"],
        partition_id=int(settings["partition-id"]),
        server_round=int(settings["server-round"]),
        lr=float(settings["lr"]),
    )
    return _trained(message, result)


@app.train("head")
def head(message: Message, context: Context) -> Message:
    """Return the client's sums for the ridge head, under the weights sent, if there are any."""
    memory, settings = _prepare(message, context)
    if not (at_start := "arrays" not in message.content.array_records):
        weights = _received(message, settings)["vector"]
        load_weights(memory.workspace, weights, memory.mask(str(settings["down"])))
    client = int(settings["partition-id"])
    counted = memory.workspace.counted_positions(client, _asked(settings))
    images = head_images(memory.workspace, counted, at_start=at_start)
    sums, config = head_statistics(memory.workspace, images), memory.workspace.config
    if (attack := attack_of(config, client)) in ON_HEAD:
        sums = poisoned_sums(sums, attack)
    found = secured(config, settings, sums.to_vector())
    return _reply(message, {"vector": found})


@app.train("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Return the client's shares of the secrets behind the masks of a secure sum."""
    memory, settings = _prepare(message, context)
    return _reply(message, {"vector": shares(memory.workspace.config, settings)})


@app.train("counts")
def counts(message: Message, context: Context) -> Message:
    """Return the client's number of training images of each class."""
    memory, settings = _prepare(message, context)
    workspace = memory.workspace
    labels = workspace.data.train.labels[workspace.client_positions(int(settings["partition-id"]))]
    found = torch.bincount(labels, minlength=workspace.data.num_classes)
    return _reply(message, {"vector": found.cpu()})


@app.train("calibrate")
def calibrate(message: Message, context: Context) -> Message:
    """Return the client's scores of the weights under the mask of the previous round.

    A single zero in their place where the server says that it knows their sum already.
    """
    memory, settings = _prepare(message, context)
    if settings["known"]:
        return _reply(message, {"vector": torch.zeros(1)})
    workspace, client = memory.workspace, int(settings["partition-id"])
    batches = client_batches(workspace, client, _asked(settings))
    mask = memory.mask(str(settings["down"]))
    found = scores(workspace, batches, mask, int(settings["server-round"]), owner=client)
    found = secured(workspace.config, settings, found)
    return _reply(message, {"vector": found})


@app.train("mask")
def mask(message: Message, context: Context) -> Message:
    """Calibrate the client's own mask, store it, and return it as bits.

    A vector that is sent holds the sensitivities of all clients together.
    """
    memory, settings = _prepare(message, context)
    total = None
    if "arrays" in message.content.array_records:
        total = _received(message, settings)["vector"]
    bits = own_mask(memory.workspace, int(settings["partition-id"]), total).to_bits()
    memory.store.put(bits)
    return _reply(message, {"vector": bytes_vector(bits)})


def _prepare(message: Message, context: Context) -> tuple[ClientMemory, Mapping[str, Any]]:
    """Return this process's client memory and the settings; store blobs and load the head first."""
    settings: Mapping[str, Any] = message.content.config_records["config"]
    config = config_of(context)
    check_own_client(context, int(settings["partition-id"]), config.clients_per_node)
    if settings["transport"] != WIRE and not on_servers_machine(context):
        raise ValueError("this node takes vectors by wire only")
    # The server resolved num-clients, which may be 0 in the configuration (as many as there are).
    workspace = shared_workspace(
        config.with_values(num_clients=int(settings["num-clients"])), own_node(config, context)
    )
    if workspace.layout != settings["layout"]:
        raise ValueError("this client has another model or other classes than the server")
    free_before(_number(settings))
    memory = client_memory(workspace)
    blobs = message.content.array_records.get("blobs", ArrayRecord())
    memory.learn([vector_bytes(unpack(blobs, WIRE, name)) for name in blobs])
    memory.load_head(str(settings["head"]))
    return memory, settings


def _number(settings: Mapping[str, Any]) -> int:
    """Return the number of the phase's round that a message is of; 0 where it has none."""
    return int(settings.get("server-round", 0))


def _asked(settings: Mapping[str, Any]) -> list[int] | None:
    """Return which clients are asked, where that matters to an image that several of them hold."""
    return [int(part) for part in str(settings["asked"]).split()] if "asked" in settings else None


def _received(message: Message, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    return unpack_many(message.content.array_records["arrays"], str(settings["transport"]))


def _trained(message: Message, result: LocalResult) -> Message:
    metrics = MetricRecord(
        {
            "num-examples": result.num_examples,
            "num-steps": result.steps,
            "train-loss": result.loss,
            "start-loss": result.start_loss,
        }
    )
    return _reply(message, {"vector": result.update, **result.sent}, metrics)


def _reply(
    message: Message, vectors: Mapping[str, Tensor], metrics: MetricRecord | None = None
) -> Message:
    settings: Mapping[str, Any] = message.content.config_records["config"]
    arrays = pack_many(vectors, str(settings["transport"]), _number(settings))
    content = RecordDict({"arrays": arrays})
    if metrics is not None:
        content["metrics"] = metrics
    return Message(content, reply_to=message)
