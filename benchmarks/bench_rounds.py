"""Seconds per round and memory of our engines, and of others, beside a bare PyTorch loop.

    python -m benchmarks.bench_rounds [--job vit_small] [--repeats 5] [--rounds 4] [--only NAME]
                                      [--data-dir DIR] [--json FILE]

Every contender runs in fresh processes of its own. A repeat goes through all of them, with the bare
loop between each two: a ratio is taken between neighbours, so that a machine that slows down slows
down both. The first round (it warms up) and the last (it saves) are left out. Ratios are given to
three loops: as one writes it ("bare"), with the matrix products that fedta uses ("kernels"), and
with these as two processes of one thread each ("2 proc."). Peaks of memory are taken in runs of
their own, for looking at it takes time. On the CPU; where CIFAR-100 is not in the data directory,
noise of the same size takes its place. One repeat is a look, and no result: it is not written.

vit_small: DINO ViT-S/16's network at 32 px with random weights (86.7 MB), 10 of 100 iid clients, 4
steps of batch 8. "density 0.1" trains a tenth of the weights, and is divided by the dense loop.
"""

import argparse
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.contenders import (
    BARE,
    CONTENDERS,
    LIMITS,
    Contender,
    Runner,
    Timing,
)
from benchmarks.harness.jobs import JOBS, prepared
from benchmarks.harness.processes import exit_on_sigterm
from benchmarks.harness.report import facts, processor, write
from benchmarks.harness.rounds_figure import save_rounds
from benchmarks.peers.pfl_env import PeerError

DEFAULT_JOBS = ("vit_small",)

Times = dict[str, list[tuple[Timing, Timing]]]  # of a contender, and of the bare loop beside it


def measure(
    runner: Runner, contenders: Sequence[Contender], *, repeats: int, rounds: int, memory: bool
) -> dict[str, Any]:
    """Time the contenders beside the bare loop, then look at their memory.

    Returns
    -------
    dict
        Per name: `seconds` per round, `ratio` (both medians over the repeats), `ratios`,
        `bare-seconds` of the loop beside it, `startup` seconds, peaks of memory in MiB, and for
        each of `LIMITS` that was measured the `ratios` to it under its name in `limits`; or the
        reason why it was `skipped`.
    """
    found: dict[str, Any] = {}
    able = []
    for contender in contenders:
        try:
            runner.check(contender)
            able.append(contender)
        except PeerError as error:
            found[contender.name] = {"skipped": str(error)}
            print(f"  {contender.name}: skipped: {error}", flush=True)
    times: Times = {contender.name: [] for contender in able}
    for _ in range(repeats):
        for contender, timing, bare in _one_repeat(runner, able, rounds):
            times[contender.name].append((timing, bare))
    for contender in able:
        found[contender.name] = _summary(times[contender.name])
    for contender in able:
        row = found[contender.name]
        row["limits"] = {
            limit.name: [
                ours / theirs
                for ours, theirs in zip(row["ratios"], found[limit.name]["ratios"], strict=True)
            ]
            for limit in LIMITS
            if limit in able
        }
        if memory:
            peaks = asdict(runner.watch(contender)).items()
            row["peak-mib"] = {name: round(value) for name, value in peaks}
    return {contender.name: found[contender.name] for contender in contenders}


def _one_repeat(
    runner: Runner, contenders: Sequence[Contender], rounds: int
) -> Iterator[tuple[Contender, Timing, Timing]]:
    """Yield every contender's time with that of the bare loop just before or after it."""
    others = [contender for contender in contenders if contender != BARE]
    for first in range(0, max(1, len(others)), 2):
        pair = others[first : first + 2]
        times = [_timed(runner, contender, rounds) for contender in pair[:1]]
        bare = _timed(runner, BARE, rounds)
        times += [_timed(runner, contender, rounds) for contender in pair[1:]]
        yield from ((who, timing, bare) for who, timing in zip(pair, times, strict=True))
        if first == 0 and BARE in contenders:
            yield BARE, bare, bare


def _timed(runner: Runner, contender: Contender, rounds: int) -> Timing:
    timing = runner.time(contender, rounds)
    print(f"  {contender.name:<30} {timing.median:8.3f} s/round", flush=True)
    return timing


def _summary(times: list[tuple[Timing, Timing]]) -> dict[str, Any]:
    ratios = [timing.median / bare.median for timing, bare in times]
    return {
        "seconds": statistics.median(timing.median for timing, _ in times),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "all-seconds": [timing.seconds for timing, _ in times],
        "bare-seconds": [bare.median for _, bare in times],
        "startup": statistics.median(timing.startup for timing, _ in times),
    }


def show(job: str, result: dict[str, Any]) -> None:
    """Print the table of a job."""
    number = result["repeats"]
    print(f"\n{job} ({result['preset']}, {result['dataset']}), medians of {number} repeats")
    print(f"  {processor()}, torch {torch.__version__}, {result['threads']} threads")
    columns = "".join(f"{title:^18}" for title in ("x bare", "x kernels", "x 2 proc."))
    print(f"  {'':<35} s/round{columns}start, s  peak, MiB")
    for name, row in result["contenders"].items():
        if "skipped" in row:
            print(f"  {name:<35} skipped: {row['skipped']}")
            continue
        limits = [row["limits"].get(limit.name, []) for limit in LIMITS]
        ratios = "".join(f"{_spread(some):^18}" for some in (row["ratios"], *limits))
        peak = row.get("peak-mib", {}).get("total", "")
        print(f"  {name:<35} {row['seconds']:7.3f}{ratios}{row['startup']:8.1f} {peak:>10}")
    if number == 1:
        print("  One repeat is a look, and no result.")


def _spread(ratios: Sequence[float]) -> str:
    """Return the median of ratios with the lowest and the highest; nothing for none."""
    if not ratios:
        return ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main(arguments: list[str] | None = None) -> None:
    """Print a table per job, and write everything to a file when asked."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json is not None and options.repeats < 2:
        parser.error(f"--repeats {options.repeats} is no result that --json could keep: 2 or more")
    exit_on_sigterm()
    chosen = [CONTENDERS[name] for name in options.only or CONTENDERS]
    report: dict[str, Any] = {**facts(), "jobs": {}}
    for name in options.job or DEFAULT_JOBS:
        with prepared(JOBS[name], options.data_dir) as job:
            runner = Runner(job, prefix=shlex.split(options.prefix), pfl=options.pfl_python)
            print(f"\n{name}, as it comes", flush=True)
            found = measure(
                runner,
                chosen,
                repeats=options.repeats,
                rounds=options.rounds,
                memory=not options.no_memory,
            )
            report["jobs"][name] = {
                "preset": job.job.preset,
                "dataset": job.places["dataset"],
                "threads": job.job.num_threads,
                "rounds": options.rounds,
                "repeats": options.repeats,
                "contenders": found,
            }
        show(name, report["jobs"][name])
        write(options.json, report)
    if options.json is not None:
        save_rounds(options.json, next(iter(report["jobs"].values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--job", choices=JOBS, action="append", help="default: vit_small; may be given again"
    )
    parser.add_argument("--only", choices=CONTENDERS, action="append", metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4, help="that are timed, per run")
    parser.add_argument("--no-memory", action="store_true", help="do not look at the memory")
    parser.add_argument("--data-dir", default="~/fedta/data", help="where CIFAR-100 is, if it is")
    parser.add_argument("--pfl-python", type=Path, help="a Python that has pfl; default: make one")
    parser.add_argument("--prefix", default="", help="a command before each, as 'taskset -c 0,1'")
    parser.add_argument("--json", type=Path, help="also write the result here, and its figure")
    return parser


if __name__ == "__main__":
    main()
