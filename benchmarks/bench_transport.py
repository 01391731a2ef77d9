"""Packing and unpacking a vector of ViT-S/16's size, by every transport, beside a plain copy.

    python -m benchmarks.bench_transport [--json FILE] [--pairs 7] [--threads 2]

What a client does with a vector counts: it is packed, unpacked, and copied into the model. The
last is the plain copy, so nothing can be below 1.0. Sender and receiver are one process here; what
Flower adds to a message on its way is not in it.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.pairs import VIT_SMALL, copy_of, in_turn, median_ratio, vector_options
from benchmarks.harness.report import facts, write
from engine import transport
from fedta_app.seeding import torch_generator


def measure(*, size: int = VIT_SMALL, pairs: int = 7) -> list[dict[str, Any]]:
    """Return a row per transport: seconds of pack, unpack and copy, and their ratio to a copy."""
    vector = torch.randn(size, generator=torch_generator("bench_transport"))
    copy = copy_of(vector)
    rows = []
    for name in transport.TRANSPORTS:
        ours, copies = in_turn([journey_of(vector, name), copy], pairs)
        rows.append(
            {
                "transport": name,
                "seconds": statistics.median(ours),
                "copy-seconds": statistics.median(copies),
                "ratio": median_ratio(ours, copies),
            }
        )
    return rows


def journey_of(vector: Tensor, name: str) -> Callable[[], Tensor]:
    """Return a call that sends a vector by a transport into memory that is there."""
    target = torch.zeros_like(vector)

    def journey() -> Tensor:
        record = transport.pack(vector, name)
        target.copy_(transport.unpack(record, name))
        transport.release(record, name)
        return target

    return journey


def main(arguments: list[str] | None = None) -> None:
    """Print one line per transport, and write the JSON if asked."""
    options = vector_options(__doc__, arguments)
    rows = measure(size=options.size, pairs=options.pairs)
    print(f"{options.size} weights there and into the model; time by that of one copy")
    for row in rows:
        print(f"  {row['transport']:<16} {row['seconds']:7.3f} s  {row['ratio']:5.2f} x")
    write(options.json, {**facts(), "threads": options.threads, "size": options.size, "rows": rows})


if __name__ == "__main__":
    main()
