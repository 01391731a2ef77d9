"""Rounds of DINO ViT-S/16 at 224 px on a GPU: seconds, share of the card's rate, and the rest.

    python -m benchmarks.bench_gpu [--data-dir DIR] [--json results/benchmarks/gpu.json]
    python -m benchmarks.bench_gpu --device cpu --tiny     # seconds, anywhere: does it run?

K = 100, C = 0.1, J = 4, batches of 64, on the in-process engine: dense and at density 0.1, in the
precisions that the card has, op by op, from CUDA graphs and compiled. The share is that of the rate
at which the same card multiplies large random matrices in the same precision. The parts of a round
are timed alone, each until the GPU is done; together they take longer than where they overlap.
Without CIFAR-100 the images are noise of its shape, which take the same time.
"""

import argparse
import contextlib
import gc
import io
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.harness.operations import (
    TransformerOperations,
    matrix_rate,
    median_seconds,
    operations_by_name,
)
from benchmarks.harness.report import facts, write
from benchmarks.harness.round_parts import round_parts
from experiments.running.launch import run_here
from fedta_app.config import RunConfig
from fedta_app.data.loading import DataSplits, ImageSet, load_data
from fedta_app.device.cuda import has_bf16, resolve_device
from fedta_app.errors import DataError
from fedta_app.runs.directory import run_path
from fedta_app.runs.provenance import device_name
from fedta_app.runs.records import read_rows
from fedta_app.sensitivity import fisher_diagonal
from fedta_app.training.passes import MODES
from fedta_app.training.scoring import client_batches
from fedta_app.training.steps import evaluate, images_of, steps_of
from fedta_app.training.workspace import Workspace, build_workspace

JSON = Path("results/benchmarks/gpu.json")
_OFF = "is off in this process"  # what a fallback says
JOB: dict[str, Any] = {
    "dataset": "cifar100", "model": "vit_small_patch16_224.dino", "weights": "random",
    "partition": "iid", "num-clients": 100, "fraction-train": 0.1, "local-steps": 4,
    "batch-size": 64, "lr": 1e-3, "momentum": 0.9, "engine": "in-process",
    "eval-every": 10**6, "eval-size": 10, "checkpoint-every": 10**6, "keep-model": "none",
}  # fmt: skip
TINY: dict[str, Any] = {"dataset": "digits", "model": "vit_digits", "batch-size": 8, "threads": 1}
# A head that costs a round, so that a mask may cover the backbone; nothing is scored.
MASKED: dict[str, Any] = {
    "head": "probe", "probe-rounds": 1, "mask-rule": "random", "sparsity": 0.9,
}  # fmt: skip


def noise(*_: object, **__: object) -> DataSplits:
    """Return noise in the shape of CIFAR-100, with as many images of each class."""
    generator = torch.Generator().manual_seed(0)

    def images(number: int) -> ImageSet:
        shape = (number, 3, 32, 32)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return ImageSet(pixels, torch.arange(number) % 100)

    train, val, test = images(45_000), images(5_000), images(10_000)
    half = (0.5, 0.5, 0.5)
    return DataSplits("cifar100", 100, train, val, test, half, half, 4, True, "noise")


def run_rounds(config: RunConfig) -> tuple[list[float], list[str]]:
    """Return the seconds of each round of a run, and what it said of its own limits."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # the table is what one wants to see
        run_here(config)
    return train_seconds(config), [line for line in said.getvalue().splitlines() if _OFF in line]


def train_seconds(config: RunConfig) -> list[float]:
    """Return the seconds of each round of training that a run recorded."""
    return [float(row["seconds"]) for row in read_rows(run_path(config)) if row["phase"] == "train"]


def peak_memory(config: RunConfig) -> int | None:
    """Return the most bytes on the GPU in any round that a run recorded, None without a GPU."""
    found = [row["gpu_memory_mb"] for row in read_rows(run_path(config))]
    return round(1e6 * max(map(float, filter(None, found)))) if any(found) else None


def measure_round(config: RunConfig, device: torch.device, ceiling: float) -> dict[str, Any]:
    """Return seconds per round, the share of the ceiling, and the most memory it took."""
    gc.collect()  # what the row before held
    if device.type == "cuda":
        torch.cuda.empty_cache()
    seconds, said = run_rounds(config)
    workspace = build_workspace(config)
    operations = _round_operations(workspace)
    steady = statistics.median(seconds[1:])
    return {
        "precision": config.precision,
        "compile": config.compile,
        "density": 1.0 if config.mask_rule == "none" else 1 - config.sparsity,
        "seconds": steady,
        "first-round-seconds": seconds[0],
        "all-seconds": seconds,
        "operations": operations,
        "operations-per-second": operations / steady,
        "share-of-matrix-rate": operations / steady / ceiling,
        "peak-memory-bytes": peak_memory(config),
        "parts": round_parts(workspace, steady),
        "said": said,
    }


def _round_operations(workspace: Workspace) -> int:
    """Return the operations of a round's training: images seen, times those of an image."""
    config = workspace.config
    clients = max(1, round(config.fraction_train * config.num_clients))
    seen = [
        images_of(len(held), config.batch_size, steps_of(config, len(held)))
        for held in workspace.partitions
    ]
    images = round(clients * statistics.mean(seen))
    return images * TransformerOperations.of(workspace.model).training


def measure_rest(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Return seconds of evaluation and of sensitivities."""
    workspace = build_workspace(config)
    test, batches = workspace.data.test, client_batches(workspace, 0)
    evaluation = median_seconds(lambda: evaluate(workspace, test), device, repeats=2, warm_up=1)
    scoring = median_seconds(
        lambda: fisher_diagonal(workspace.model, batches), device, repeats=2, warm_up=1
    )
    return {
        "precision": config.precision,
        "evaluation-images": len(test),
        "evaluation-seconds": evaluation,
        "scored-images": len(batches.images),
        "scoring-seconds": scoring,
        # In float32 whatever the precision; a calibration has `calibration-rounds` of these.
        "scoring-seconds-of-all-clients": scoring * config.num_clients,
    }


def jobs(precisions: list[str], modes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what differs between rows: float32 only as a reference, dense and op by op."""
    for precision in precisions:
        half = precision in ("bf16", "fp16")
        for mode in modes if half else modes[:1]:
            for mask in ({}, MASKED) if half else ({},):
                yield {"precision": precision, "compile": mode, **mask}


def default_precisions(device: torch.device) -> list[str]:
    """Return the precisions that the device has itself."""
    if device.type != "cuda":
        return ["fp32", "bf16"] if has_bf16(device) else ["fp32"]
    return ["bf16", "fp16", "tf32", "fp32"] if has_bf16(device) else ["fp16", "fp32"]


@contextlib.contextmanager
def data_of(base: dict[str, Any]) -> Iterator[str]:
    """Yield "real" where the data set is there or can be fetched, else put noise in its place."""
    try:
        folder = base.get("data-dir", RunConfig().data_dir)
        load_data(base["dataset"], Path(folder).expanduser(), val_size=0.1, seed=0)
    except DataError as error:
        print(f"noise in place of images: {error}")
        with mock.patch("fedta_app.training.datasets.load_data", noise):
            yield "noise"
    else:
        yield "real"


def counted() -> dict[str, int]:
    """Return the operations of the experiment, whatever is measured here."""
    image = operations_by_name(JOB["model"], image_size=224, num_classes=100)
    images = round(JOB["num-clients"] * JOB["fraction-train"]) * JOB["local-steps"]
    return {
        "forward-of-an-image": image.forward,
        "training-of-an-image": image.training,
        "round": images * JOB["batch-size"] * image.training,
        "evaluation-of-10000": 10_000 * image.forward,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every row, print it, and return the report."""
    device = resolve_device(options.device)
    precisions = options.precision or default_precisions(device)
    modes = options.compile or (list(MODES) if device.type == "cuda" else ["off"])
    size = 512 if options.tiny else 8192
    base = {**JOB, "num-server-rounds": 1 + options.rounds, "device": options.device}
    base |= TINY if options.tiny else {}
    base |= {"data-dir": options.data_dir} if options.data_dir else {}
    torch.set_num_threads(base.get("threads", torch.get_num_threads()))
    operations = counted()
    print(f"{JOB['model']} at 224 px, TFLOP in matrix products:")
    print("  " + ", ".join(f"{name} {count / 1e12:.4g}" for name, count in operations.items()))
    ceilings = {name: matrix_rate(name, device, size) for name in precisions}
    for name, rate in ceilings.items():
        print(f"{name}: {rate / 1e12:.3g} TFLOP/s in products of {size} x {size} random matrices")
    report: dict[str, Any] = {
        **facts(),
        "device": device_name(device),
        "operations-of-the-experiment": operations,
        "matrix-size": size,
        "matrix-rates": ceilings,
        "rounds": [],
        "rest": [],
    }
    with data_of(base) as report["images"], tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs(precisions, modes)):
            name = f"bench{number}"
            config = RunConfig.from_mapping({**base, **job, "results-dir": folder, "name": name})
            row = measure_round(config, device, ceilings[config.precision])
            report["rounds"].append(row)
            print_row(row)
        for precision in precisions:
            row = measure_rest(RunConfig.from_mapping({**base, "precision": precision}), device)
            report["rest"].append(row)
            print(
                f"{precision}: {row['evaluation-images']} images evaluated in "
                f"{row['evaluation-seconds']:.2f} s; sensitivities of {row['scored-images']} in "
                f"{row['scoring-seconds']:.2f} s, {row['scoring-seconds-of-all-clients']:.0f} s "
                "for all clients"
            )
        if options.flower and report["images"] == "real":
            report["flower"] = measure_flower({**base, "precision": precisions[0]}, folder)
        elif options.flower:
            print("Flower's engine is left out: its processes need real images")
    return report


def measure_flower(base: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return seconds per round on Flower's engine, with as many clients at a time as pay."""
    from experiments.running.concurrency import client_share
    from experiments.running.flower import run_on_flower

    places = {"engine": "flower", "results-dir": folder, "name": "flower"}
    config = RunConfig.from_mapping({**base, **places})
    share = client_share(config, client_cpus=1, client_gpus=None)
    run_on_flower(config, client_cpus=1, client_gpus=share)
    seconds = train_seconds(config)
    row = {"precision": config.precision, "client-gpus": share, "all-seconds": seconds}
    row["seconds"] = statistics.median(seconds[1:])
    print(f"Flower's engine, {config.precision}, dense: {row['seconds']:.3f} s a round")
    return row


def print_row(row: dict[str, Any]) -> None:
    """Print a row of the table and, below it, where the time of a round goes."""
    peak = row["peak-memory-bytes"]
    print(
        f"\n{row['precision']}, compile = {row['compile']}, density {row['density']:.1f}: "
        f"{row['seconds']:.3f} s a round (first {row['first-round-seconds']:.1f} s), "
        f"{row['operations'] / 1e12:.3g} TFLOP, {row['share-of-matrix-rate']:.0%} of the matrix "
        f"rate{f', {peak / 2**30:.1f} GiB at most' if peak else ''}"
    )
    for line in row["said"]:
        print(f"  {line}")
    for part in row["parts"]:
        print(f"  {part['seconds']:8.4f} s {part['share']:5.0%}  {part['name']}")


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write everything to a file: by default only what a GPU did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on digits, in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after a first one")
    parser.add_argument("--precision", action="append", choices=["bf16", "fp16", "tf32", "fp32"])
    parser.add_argument("--compile", action="append", choices=MODES)
    parser.add_argument("--flower", action="store_true", help="Flower's engine too (needs Ray)")
    parser.add_argument("--data-dir")
    parser.add_argument("--json", type=Path, help=f"default on a GPU: {JSON}")
    options = parser.parse_args(arguments)
    report = measure(options)
    on_gpu = resolve_device(options.device).type == "cuda" and not options.tiny
    path = options.json or (JSON if on_gpu else None)
    write(path, report)
    if path:
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
