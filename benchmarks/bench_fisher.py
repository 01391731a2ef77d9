"""Cost of the Fisher diagonal beside a plain forward and backward pass, in time and memory.

    python -m benchmarks.bench_fisher [--json PATH] [--batch-size 8] [--pairs 5] [--threads 2]

`check_ratio` is what a call takes that scores one batch and first checks the fast way by the slow
one, by what it takes where the caller knows of an earlier check. Times are taken in pairs within
one process, so that other load on the machine meets both alike. Memory is the peak resident set of
fresh processes, from Linux's /proc: `ru_maxrss` would be the parent's peak wherever that is larger.
CPU only.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.pairs import in_turn, median_ratio
from benchmarks.harness.report import facts, write
from fedta_app.sensitivity import Trusted, fisher_diagonal, fisher_into

MODEL = "vit_small_patch16_224.dino"
NUM_CLASSES = 100
NUM_BATCHES = 2  # the first is computed in two parts, so one alone would flatter the peak
WORKLOADS = ("nothing", "plain", "fisher")


def measure(
    *, batch_size: int = 8, pairs: int = 5, threads: int = 2, image_size: int = 224
) -> dict[str, float | int | str]:
    """Return the ratios of time and of peak memory, and the figures that they come from.

    `nothing_peak_mib` is that of a process that imports everything and builds the model.
    """
    torch.set_num_threads(threads)
    plain, fisher = _paired_times(batch_size, pairs, image_size)
    peaks = {name: _peak_mib(name, batch_size, threads, image_size) for name in WORKLOADS}
    return {
        "model": MODEL,
        "image_size": image_size,
        "batch_size": batch_size,
        "threads": threads,
        "pairs": pairs,
        "torch": torch.__version__,
        "time_ratio": median_ratio(fisher, plain),
        "plain_seconds_per_batch": statistics.median(plain) / NUM_BATCHES,
        "fisher_seconds_per_batch": statistics.median(fisher) / NUM_BATCHES,
        "check_ratio": _check_ratio(batch_size, pairs, image_size),
        "memory_ratio": peaks["fisher"] / peaks["plain"],
        "memory_ratio_above_imports": (peaks["fisher"] - peaks["nothing"])
        / (peaks["plain"] - peaks["nothing"]),
        **{f"{name}_peak_mib": peak for name, peak in peaks.items()},
    }


def _paired_times(batch_size: int, pairs: int, image_size: int) -> list[list[float]]:
    """Return seconds of plain passes and of the Fisher diagonal, in turn."""
    batch = _model_and_batch(batch_size, image_size)
    return in_turn([_workload(name, *batch) for name in ("plain", "fisher")], pairs)


def _check_ratio(batch_size: int, pairs: int, image_size: int) -> float:
    model, images, labels = _model_and_batch(batch_size, image_size)
    totals = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}

    def score(trusted: Trusted) -> None:
        fisher_into(model, totals, [(images, labels)], trusted=trusted)

    known: Trusted = {}
    score(known)
    return median_ratio(*in_turn([lambda: score({}), lambda: score(known)], pairs))


def _model_and_batch(batch_size: int, image_size: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_classes": NUM_CLASSES, "img_size": image_size}
    model = timm.create_model(MODEL, pretrained=False, **options).eval()
    for parameter in model.get_submodule("head").parameters():
        parameter.requires_grad_(False)  # as in the method
    images = torch.randn(batch_size, 3, image_size, image_size)
    return model, images, torch.randint(NUM_CLASSES, (batch_size,))


def _workload(name: str, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    def plain() -> None:
        for _ in range(NUM_BATCHES):
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(F.cross_entropy(model(images), labels))

    def fisher() -> None:
        fisher_diagonal(model, [(images, labels)] * NUM_BATCHES)

    return {"nothing": lambda: None, "plain": plain, "fisher": fisher}[name]


def _peak_mib(name: str, batch_size: int, threads: int, image_size: int) -> float:
    """Return the peak memory of a fresh process that runs one workload twice."""
    code = (
        "from benchmarks.bench_fisher import run_alone; "
        f"run_alone({name!r}, {batch_size}, {threads}, {image_size})"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=root).stdout)


def run_alone(name: str, batch_size: int, threads: int, image_size: int) -> None:
    """Run one workload twice and print this process's peak memory in MiB."""
    torch.set_num_threads(threads)
    run = _workload(name, *_model_and_batch(batch_size, image_size))
    run()
    run()
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    """Print the measurements, and write them to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    result = measure(
        batch_size=arguments.batch_size, pairs=arguments.pairs, threads=arguments.threads
    )
    print(json.dumps(result, indent=2))
    write(arguments.json, {**facts(), **result})


if __name__ == "__main__":
    main()
