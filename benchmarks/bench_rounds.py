"""Seconds per round of our engines beside a bare PyTorch loop that does the same work.

    python -m benchmarks.bench_rounds [--job demo] [--repeats 3] [--data-dir DIR] [--json FILE]

Each repeat runs the bare loop and every engine in turn; the ratio is taken within a repeat, so that
a machine that slows down slows down both. Rounds are timed without evaluation; the first is left
out (it pays for warming up). CIFAR-100 is skipped, with a word, where its files are not there.
"""

import argparse
import contextlib
import csv
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from client_app.app import app as client_app
from engine.inprocess import run_in_process
from experiments.flower import run_on_flower
from experiments.presets import presets
from fedta_app.config import RunConfig
from fedta_app.data import DataError
from fedta_app.files import write_atomically
from fedta_app.provenance import code_facts, device_name, versions
from fedta_app.run_directory import run_path
from fedta_app.seeding import numpy_generator, torch_generator
from fedta_app.workspace import build_workspace, resolve_device
from server_app.app import app as server_app

# Presets, and what differs so that a repeat takes seconds.
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo/fedavg", {"num-server-rounds": 11}),
    "cifar100": ("small/fedavg-iid", {"num-server-rounds": 5, "batch-size": 8}),
}
ENGINES = ("bare loop", "in-process", "flower, 1 actor", "flower, 2 actors")


def bare_loop(config: RunConfig) -> list[float]:
    """Return the seconds of each round of FedAvg as one would write it in a notebook."""
    space = build_workspace(config)
    model, parameters = space.model, list(space.model.parameters())
    model.train()
    weights = [parameter.detach().clone() for parameter in parameters]
    count = max(1, round(config.fraction_train * config.num_clients))
    seconds = []
    for server_round in range(config.num_server_rounds):
        began = time.perf_counter()
        draw = numpy_generator(config.seed, "bare loop", server_round)
        total = [torch.zeros_like(weight) for weight in weights]
        clients = draw.choice(config.num_clients, size=count, replace=False)
        examples = sum(len(space.partitions[client]) for client in clients)
        for client in clients:
            with torch.no_grad():
                for parameter, weight in zip(parameters, weights, strict=True):
                    parameter.copy_(weight)
            images = space.client_data(client)
            optimizer = torch.optim.SGD(
                parameters,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            generator = torch_generator(config.seed, server_round, int(client))
            for _ in range(config.local_steps):
                size = min(config.batch_size, len(images))
                batch = images.subset(torch.randperm(len(images), generator=generator)[:size])
                optimizer.zero_grad()
                logits = model(space.inputs(batch.images, generator))
                cross_entropy(logits, batch.labels).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, parameter in zip(total, parameters, strict=True):
                    sum_.add_(parameter, alpha=len(images) / examples)
        weights = total
        seconds.append(time.perf_counter() - began)
    return seconds


def engine_rounds(config: RunConfig, engine: str) -> list[float]:
    """Return the seconds of each round of a run on one of our engines."""
    with contextlib.redirect_stdout(io.StringIO()):  # the table is what one wants to see
        if engine == "in-process":
            run_in_process(server_app, client_app, config.to_mapping(), config.num_clients)
        else:
            cpus = 2 if "1 actor" in engine else 1
            run_on_flower(config, client_cpus=cpus, client_gpus=0.0)
    with (run_path(config) / "metrics.csv").open() as stream:
        return [float(row["seconds"]) for row in csv.DictReader(stream) if row["phase"] == "train"]


def measure(job: str, repeats: int, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return per engine the median seconds per round, and the median ratio to the bare loop."""
    label, changes = JOBS[job]
    (preset,) = presets(label)
    times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine in ENGINES:
            with tempfile.TemporaryDirectory() as folder:
                kind = "in-process" if engine == "in-process" else "flower"
                rest = {"eval-every": 100, "eval-size": 10, "checkpoint-every": 100}
                places = {"engine": kind, "results-dir": folder}
                config = preset.config({**changes, **rest, **places, **overrides})
                bare = engine == "bare loop"
                seconds = bare_loop(config) if bare else engine_rounds(config, engine)
                times[engine].append(statistics.median(seconds[1:]))
    ratios = {
        engine: statistics.median(a / b for a, b in zip(values, times["bare loop"], strict=True))
        for engine, values in times.items()
    }
    medians = {engine: statistics.median(values) for engine, values in times.items()}
    return {"preset": preset.label, "seconds": medians, "ratio": ratios, "all-seconds": times}


def main() -> None:
    """Print a table per job, and write everything to a file when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=JOBS, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--data-dir", default="~/fedta/data")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "device": device_name(resolve_device("auto")),
        "versions": versions(),
        "code": code_facts(),
        "jobs": {},
    }
    for job in options.job or JOBS:
        try:
            result = measure(job, options.repeats, {"data-dir": options.data_dir})
        except DataError as error:
            print(f"{job}: skipped: {error}")
            continue
        report["jobs"][job] = result
        print(f"\n{job} ({result['preset']}), {options.repeats} repeats")
        for engine in ENGINES:
            seconds, ratio = result["seconds"][engine], result["ratio"][engine]
            print(f"  {engine:<18} {seconds:8.3f} s/round   {ratio:5.2f} x bare loop")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
