"""Times of two things in turn, within one process: other load on the machine meets both alike."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

VIT_SMALL = 21_630_436  # parameters of ViT-S/16 at 32 px with 100 classes, 86.5 MB


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call took."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turn(runs: Sequence[Callable[[], object]], pairs: int) -> list[list[float]]:
    """Return seconds of each call, `pairs` times in turn, after one turn that warms up."""
    rows = [[seconds(run) for run in runs] for _ in range(pairs + 1)]
    return [list(column) for column in zip(*rows[1:], strict=True)]


def median_ratio(times: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the turns of one time by the other."""
    return statistics.median(one / other for one, other in zip(times, others, strict=True))


def copy_of(vector: Tensor) -> Callable[[], object]:
    """Return a call that copies a vector into memory that is there: 2 x its bytes are moved."""
    target = torch.zeros_like(vector)
    return lambda: target.copy_(vector)


def vector_options(document: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """Read the options of a benchmark on a vector of weights, and set torch's threads by them."""
    parser = argparse.ArgumentParser(description=document.splitlines()[0] if document else None)
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", type=int, default=VIT_SMALL, help="weights of the vector")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    return options
