"""Broken and hostile replies in whole runs: each counts as that client's error, and no more.

    python -m benchmarks.endurance.replies [--number 1000] [--seed 0] [--json FILE]

Small runs of several kinds (ridge head, calibrated masks, masks of clients' own, SCAFFOLD, robust
means) answer by wire, and a part of their replies, of every phase, is damaged so that no honest
client could have sent it. In a second run the same clients raise an error at the same places. Both
runs have to finish with the same weights, or to stop with one sentence where too few are left.
"""

import collections
import contextlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Array, Error, Message

from benchmarks.endurance.trial import options, play
from benchmarks.harness.report import facts, write
from engine.inprocess import InProcessGrid
from engine.transport import WIRE

BASE: dict[str, Any] = {
    "num-clients": 12, "fraction-train": 0.5, "num-server-rounds": 5, "local-steps": 1,
    "eval-size": 20, "eval-every": 5, "calibration-rounds": 2, "calibration-examples": 4,
    "threads": 1, "engine": "in-process", "transport": "wire", "head": "ridge",
    "missing-clients": "go-on", "cache-dir": "", "resume": False, "name": "replies",
}  # fmt: skip
KINDS: tuple[dict[str, Any], ...] = (
    {"strategy": "scaffold", "mask-rule": "least-sensitive"},
    {"strategy": "masked-fedavg", "mask-rule": "least-sensitive", "mask-scope": "client"},
    {"strategy": "fedmedian", "head-refresh": 2, "head-refresh-clients": "sampled"},
    {"strategy": "fednova", "mask-rule": "agreement"},
    {"strategy": "ditto", "partition": "classes"},
    {"strategy": "fedavg", "superclient-clients": 2},
)
SHARE = 0.15  # of the replies
QUESTION = "query"  # the message that asks a node who it is: without an answer there is no run


def _change(**fields: Any) -> Callable[[Array, random.Random], None]:
    def change(array: Array, generator: random.Random) -> None:
        array.__dict__.update(fields)

    return change


def _cut(array: Array, generator: random.Random) -> None:
    array.data = array.data[: generator.randrange(len(array.data))] if array.data else b"x"


def _longer(array: Array, generator: random.Random) -> None:
    array.data += generator.randbytes(generator.randint(1, 9))


def _not_finite(array: Array, generator: random.Random) -> None:
    """Put the bits of NaN, or of an infinity, in place of one number; cut what is not of floats."""
    width = {"float32": 4, "float64": 8}.get(array.dtype)
    if width is None:
        _cut(array, generator)
        return
    sign, fraction = generator.choice((0, 128)), generator.choice((0, 1))
    exponent = {4: (0x7F, 0x80), 8: (0x7F, 0xF0)}[width]
    number = bytes([exponent[0] | sign, exponent[1] | fraction * 8, *bytes(width - 2)])[::-1]
    place = width * generator.randrange(len(array.data) // width)
    array.data = array.data[:place] + number + array.data[place + width :]


ARRAYS: dict[str, Callable[[Array, random.Random], None]] = {
    "shared memory": _change(stype="fedta.shared"),
    "memory of this process": _change(stype="fedta.memory"),
    "Flower's arrays": _change(stype="numpy.ndarray"),
    "an unknown type": _change(dtype="object"),
    "complex numbers": _change(dtype="complex64"),
    "a negative shape": _change(shape=(-1,)),
    "a huge shape": _change(shape=(10**15,)),
    "a shape of words": _change(shape=("x",)),
    "cut": _cut,
    "longer": _longer,
    "not finite": _not_finite,
}


def damage(reply: Message, generator: random.Random) -> str:
    """Change a reply into one that no honest client sends, and return the name of the change."""
    records = list(reply.content.array_records.values())
    records = [record for record in records if len(record)]
    kind = generator.choice((*ARRAYS, "no records", "another name", "one more", "metrics"))
    metrics: Any = reply.content.metric_records.get("metrics", {})
    memory = reply.content.config_records.get("memory")
    if memory is not None and generator.random() < 0.1:
        memory["digest"] = generator.choice(("../../x", "", "A" * 64))
        return "a memory of no sha256"
    if kind == "metrics" and "num-examples" in metrics:
        metrics["num-examples"] = generator.choice((0, -1, 10**15, 0.5, float("nan")))
    elif kind == "no records" or not records:
        kind = "no records"
        for name in list(reply.content):
            del reply.content[name]
    elif kind == "another name":
        record = records[0]
        name = next(iter(record))
        record["x" + name] = record[name]
        del record[name]
    elif kind in ("one more", "metrics"):
        kind = "one more"
        records[0]["one more"] = Array("float32", (1,), WIRE, bytes(4))
    else:
        record = records[0]
        ARRAYS[kind](record[next(iter(record))], generator)
    return kind


@contextlib.contextmanager
def replies_changed(
    change: Callable[[Message, random.Random], Message], seed: str
) -> Iterator[None]:
    """Let a share of the replies of the in-process engine be changed, the same for a seed."""
    answer, number = InProcessGrid._answer, 0

    def changed(grid: InProcessGrid, message: Message) -> Message:
        nonlocal number
        reply = answer(grid, message)
        if message.metadata.message_type.startswith(QUESTION) or reply.has_error():
            return reply
        number += 1
        generator = random.Random(f"{seed} {number}")
        return change(reply, generator) if generator.random() < SHARE else reply

    with patch.object(InProcessGrid, "_answer", changed):
        yield


def main(arguments: list[str] | None = None) -> int:
    """Damage replies, print how many of which phase and kind, and return 1 if one was taken."""
    asked = options(__doc__, arguments, counted="number", number=1000)
    spoiled: collections.Counter[tuple[str, str]] = collections.Counter()  # phase and kind
    faults, runs = [], 0

    def spoil(reply: Message, generator: random.Random) -> Message:
        spoiled[reply.metadata.message_type, damage(reply, generator)] += 1
        return reply

    def fail(reply: Message, generator: random.Random) -> Message:
        error = Message(Error(code=0, reason="it broke"), reply_to=reply)
        error.metadata.__dict__.update(reply.metadata.__dict__)
        return error

    while spoiled.total() < asked.number:
        values = {**BASE, **KINDS[runs % len(KINDS)], "seed": runs}
        seed = f"{asked.seed} {runs}"
        with tempfile.TemporaryDirectory(prefix="replies-") as folder:
            with replies_changed(spoil, seed):
                spoilt, said = play(values, Path(folder) / "spoilt")
            with replies_changed(fail, seed):
                failed, _ = play(values, Path(folder) / "failed")
        runs += 1
        if spoilt != failed or "Traceback" in said:
            faults.append({"run": values, "spoilt": spoilt, "failed": failed})
            print(f"{values}\n  {spoilt}\n  {failed}\n{said[-2000:]}", flush=True)
        print(f"{runs} runs, {spoiled.total()} replies, {len(faults)} faults", flush=True)
    matrix: dict[str, dict[str, int]] = {}
    for (phase, kind), count in sorted(spoiled.items()):
        matrix.setdefault(phase, {})[kind] = count
    for phase, counts in matrix.items():
        print(f"{phase}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    result = {"runs": runs, "replies": spoiled.total(), "matrix": matrix, "faults": faults}
    write(asked.json, {**facts(), **result})
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
