"""Where a round goes: the parts of a round in one process, and what Flower's engine adds.

    python -m benchmarks.bench_parts [--job vit_small] [--repeats 5] [--rounds 4]
                                     [--data-dir DIR] [--json FILE]

The same round as that of `bench_rounds`, once with all weights and once with a random tenth, but
with a measurement of 500 images and a checkpoint after each, and vectors by shared memory, as on
Flower's engine. A repeat is a run in one process, with a clock in its functions, and one on
Flower's engine with one actor, each in fresh processes; what Flower's takes longer is waiting for
Flower. The first round and the last are left out. Medians over rounds, then over repeats.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_parts.clock import PARTS
from benchmarks.harness.contenders import Contender, Runner, Timing
from benchmarks.harness.jobs import JOBS, prepared
from benchmarks.harness.processes import exit_on_sigterm
from benchmarks.harness.report import facts, processor, write

WHOLE = {
    "eval-every": 1, "eval-size": 500, "checkpoint-every": 1, "keep-model": "best-and-last",
    "transport": "shared",
}  # fmt: skip
DENSITIES = {"all weights": 1.0, "density 0.1": 0.1}


def measure(runner: Runner, density: float, *, repeats: int, rounds: int) -> dict[str, Any]:
    """Return seconds a round: of each part, of one process, and of Flower's engine.

    Returns
    -------
    dict
        `parts` by name, `in-process`, `flower`, and `waiting`, the median of the differences of
        the two, which has no part; `all` holds what each repeat took.
    """
    every: list[dict[str, Any]] = []
    for _ in range(repeats):
        here = runner.time(Contender("parts", "parts", density=density), rounds)
        flower = runner.time(Contender("flower", "flower", density=density), rounds)
        every.append(
            {
                "parts": {part: _median(here, part) for part in PARTS},
                "in-process": here.median,
                "flower": flower.median,
                "waiting": flower.median - here.median,
            }
        )
        print(f"  in process {here.median:.3f}, on Flower's engine {flower.median:.3f}", flush=True)
    return {
        "parts": {
            part: statistics.median(found["parts"][part] for found in every) for part in PARTS
        },
        **{
            name: statistics.median(found[name] for found in every)
            for name in ("in-process", "flower", "waiting")
        },
        "all": every,
    }


def _median(timing: Timing, part: str) -> float:
    return statistics.median(parts[part] for parts in timing.parts)


def show(found: dict[str, dict[str, Any]], repeats: int) -> None:
    """Print the table: a line for each part, two columns for each density."""
    print(f"\n{processor()}, torch {torch.__version__}, medians of {repeats} repeats")
    print(f"{'s a round, share of it':<32}" + "".join(f"{name:^18}" for name in found))
    for part in PARTS:
        _line(part, [(row["parts"][part], row["in-process"]) for row in found.values()])
    _line("in one process", [(row["in-process"], row["in-process"]) for row in found.values()])
    _line("waiting for Flower", [(row["waiting"], row["in-process"]) for row in found.values()])
    if repeats == 1:
        print("One repeat is a look, and no result.")


def _line(name: str, seconds: Sequence[tuple[float, float]]) -> None:
    cells = "".join(f"{own:9.3f} {own / whole:6.1%}  " for own, whole in seconds)
    print(f"{name:<32}{cells}")


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and write everything to a file when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--job", choices=JOBS, default="vit_small")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4, help="that are timed, per run")
    parser.add_argument("--data-dir", default="~/fedta/data", help="where CIFAR-100 is, if it is")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args(arguments)
    if options.json is not None and options.repeats < 2:
        parser.error(f"--repeats {options.repeats} is no result that --json could keep: 2 or more")
    exit_on_sigterm()
    job = JOBS[options.job]
    job = replace(job, changes={**job.changes, **WHOLE})
    found = {}
    with prepared(job, options.data_dir) as ready:
        runner = Runner(ready)
        for name, density in DENSITIES.items():
            print(name, flush=True)
            found[name] = measure(runner, density, repeats=options.repeats, rounds=options.rounds)
    show(found, options.repeats)
    write(options.json, {**facts(), "job": options.job, "repeats": options.repeats, "rows": found})
