"""Averaging ten updates of ViT-S/16's size as they arrive, beside the memory's bandwidth.

    python -m benchmarks.bench_aggregation [--json FILE] [--pairs 7] [--threads 2]

A running mean reads every update, writes the first one down, and reads and writes the mean for
each of the others; so it goes with each further buffer, and masks are read. Those bytes, by the
bandwidth of a plain copy in the same turn, are the limit: 1.0 would be an aggregation that costs
nothing but the traffic. No update is in the cache when it comes.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.pairs import VIT_SMALL, copy_of, in_turn, median_ratio, vector_options
from benchmarks.harness.report import facts, write
from fedta_app.aggregation.accumulators import (
    MaskedMeanAccumulator,
    MeanAccumulator,
    SignElectedMeanAccumulator,
)
from fedta_app.seeding import torch_generator

CLIENTS = 10
DENSITY = 0.1
FLOAT, BOOL = 4, 1  # bytes


def measure(*, size: int = VIT_SMALL, pairs: int = 7) -> list[dict[str, Any]]:
    """Return a row per way to combine: seconds, bytes that must move, and time by their limit."""
    generator = torch_generator("bench_aggregation")
    updates = [torch.randn(size, generator=generator) for _ in range(CLIENTS)]
    masks = [torch.rand(size, generator=generator) < DENSITY for _ in range(CLIENTS)]
    copy = copy_of(updates[0])
    rows = []
    for name, run, entry_bytes in _ways(updates, masks):
        ours, copies = in_turn([run, copy], pairs)
        limit = [entry_bytes * time / (2 * FLOAT) for time in copies]
        rows.append(
            {
                "way": name,
                "seconds": statistics.median(ours),
                "bytes": entry_bytes * size,
                "copy-gb-per-second": 2 * FLOAT * size / statistics.median(copies) / 1e9,
                "ratio": median_ratio(ours, limit),
            }
        )
    return rows


def _ways(
    updates: list[Tensor], masks: list[Tensor]
) -> list[tuple[str, Callable[[], object], int]]:
    """Return names, calls, and the bytes that each must move per weight."""

    def moved(buffers: int) -> int:  # updates read; buffers written once, then read and written
        return FLOAT * (CLIENTS + buffers + 2 * buffers * (CLIENTS - 1))

    def mean() -> None:
        total = MeanAccumulator()
        for update in updates:
            total.add(update, 450)
        total.result()

    def masked_mean() -> None:
        total = MaskedMeanAccumulator()
        for update, mask in zip(updates, masks, strict=True):
            total.add(update, 450, mask)
        total.result()

    def sign_elected() -> None:
        total = SignElectedMeanAccumulator()
        for update in updates:
            total.add(update, 450)
        total.result()

    return [
        ("mean", mean, moved(1)),
        (
            f"masked mean, own masks, density {DENSITY:g}",
            masked_mean,
            moved(2) + BOOL * CLIENTS,  # mean and coverage
        ),
        ("sign election", sign_elected, moved(4)),  # mean and coverage, of up and of down
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print one line per way, and write the JSON if asked."""
    options = vector_options(__doc__, arguments)
    rows = measure(size=options.size, pairs=options.pairs)
    print(f"{CLIENTS} updates of {options.size} weights; time by the limit of the bandwidth")
    for row in rows:
        print(
            f"  {row['way']:<36} {row['seconds']:7.3f} s  {row['ratio']:5.2f} x "
            f"{row['bytes'] / 1e9:5.2f} GB at {row['copy-gb-per-second']:.1f} GB/s"
        )
    write(options.json, {**facts(), "threads": options.threads, "size": options.size, "rows": rows})


if __name__ == "__main__":
    main()
