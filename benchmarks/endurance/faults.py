"""The faults that a reply can have, and a function that gives one to a reply."""

import json
from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from engine.transport import SHARED, WIRE, pack_many, unpack_many

RAISED = "raises an error"
Vectors = dict[str, Tensor]


def _first(change: Callable[[Tensor], Tensor]) -> Callable[[Vectors], Vectors]:
    """Return a function that changes the first vector of a reply."""

    def changed(vectors: Vectors) -> Vectors:
        name = next(iter(vectors))
        return {**vectors, name: change(vectors[name])}

    return changed


def _impossible(vector: Tensor) -> Tensor:
    """Return NaN among floats, a negative number among integers, and a mask of all ones."""
    vector = vector.clone()
    if vector.dtype == torch.uint8:
        return vector | 255
    vector[len(vector) // 2] = torch.nan if vector.is_floating_point() else -1
    return vector


# What becomes of the vectors of a reply. `unpack` has read them, by whatever transport.
VECTORS: dict[str, Callable[[Vectors], Vectors]] = {
    "numbers that cannot be": _first(_impossible),
    "too short": _first(lambda vector: vector[:-1].clone()),
    "too long": _first(lambda vector: torch.cat([vector, vector[:1]])),
    "another type": _first(lambda v: v.to(torch.int32 if v.is_floating_point() else torch.float32)),
    "another shape": _first(lambda vector: vector[None].clone()),
    "another name": lambda vectors: {f"x{name}": vector for name, vector in vectors.items()},
    "one vector more": lambda vectors: {**vectors, "more": torch.zeros(1)},
}


def _no_records(reply: Message) -> None:
    for name in list(reply.content):
        del reply.content[name]


def _other_transport(reply: Message) -> None:
    """Say that the vectors came by another transport; by wire, that they are in shared memory."""
    for array in _arrays(reply).values():
        array.stype = WIRE if array.stype != WIRE else SHARED


def _foreign_handle(reply: Message) -> None:
    """Name memory of a process in which there is none, whatever the transport."""
    handle = {"pid": 1, "fd": 0, "token": "00" * 16}
    for array in _arrays(reply).values():
        array.stype, array.data = SHARED, json.dumps(handle).encode()


def _unknown_transport(reply: Message) -> None:
    for array in _arrays(reply).values():
        array.stype = "x"


def _examples(reply: Message) -> None:
    reply.content.metric_records["metrics"]["num-examples"] = 10**15


def _memory_name(reply: Message) -> None:
    reply.content.config_records["memory"]["digest"] = "../../x"


RECORDS: dict[str, Callable[[Message], None]] = {
    "no records": _no_records,
    "another transport": _other_transport,
    "a handle of other memory": _foreign_handle,
    "an unknown transport": _unknown_transport,
    "a number of examples": _examples,
    "a name for its memory": _memory_name,
}
FAULTS = (RAISED, *VECTORS, *RECORDS)
WITH_EXAMPLES = ("probe", "training")


def _arrays(reply: Message) -> ArrayRecord:
    return next(record for record in reply.content.array_records.values() if len(record))


def reason_against(fault: str, phase: str) -> str:
    """Return why there is no such fault in a phase, or an empty text."""
    if fault == "a number of examples" and phase not in WITH_EXAMPLES:
        return "replies of this phase have no number of examples"
    if fault == "a name for its memory" and phase != "training":
        return "replies of this phase name no memory"
    return ""


def spoil(reply: Message, fault: str, transport: str) -> Message:
    """Return a reply with a fault in it.

    Raises
    ------
    RuntimeError
        Where the fault is that the client raises an error.
    """
    if fault == RAISED:
        raise RuntimeError("it broke")
    if fault in RECORDS:
        RECORDS[fault](reply)
        return reply
    name = next(name for name, record in reply.content.array_records.items() if len(record))
    vectors = unpack_many(reply.content.array_records[name], transport)
    reply.content[name] = pack_many(VECTORS[fault](vectors), transport)
    return reply
