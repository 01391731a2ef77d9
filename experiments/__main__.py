"""`python -m experiments list | run TABLE`: tables of presets, from the command line."""

import argparse
import os
import sys
import traceback
from typing import Any

import torch

from experiments.comparison import save_comparison
from experiments.launch import (
    FAILED,
    FINISHED,
    INTERRUPTED_RUN,
    REFUSED,
    STOPPED,
    launch,
    preflight,
)
from experiments.presets import Preset, parse_overrides, presets, tables
from fedta_app.config import ConfigError, RunConfig
from fedta_app.run_directory import RunError, run_path


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    0: every run finished; 1: one failed; 2: refused before any work; 3: stopped early, and the
    same command continues; 130: interrupted by Ctrl-C, likewise.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except (ValueError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", flush=True)
        return INTERRUPTED_RUN
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="show the tables and their presets")
    listing.set_defaults(command=_list)
    run = commands.add_parser("run", help="run a table, or one preset of it")
    run.set_defaults(command=_run)
    run.add_argument("selection", metavar="TABLE[/PRESET]")
    run.add_argument("--seeds", type=int, default=1, metavar="N", help="N seeds from the first up")
    run.add_argument("--engine", choices=["flower", "in-process"], help="default: the preset's")
    run.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    run.add_argument("--max-minutes", type=float, help="stop cleanly before this, each run")
    run.add_argument("--results-dir", help="where run directories go (default ~/fedta/runs)")
    run.add_argument("--data-dir", help="where data sets are (default ~/fedta/data)")
    run.add_argument("--resume", action=argparse.BooleanOptionalAction, help="default: resume")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    cpus, gpus = _default_resources()
    run.add_argument(
        "--client-cpus", type=int, default=cpus, help="CPUs a Flower client takes (default 1)"
    )
    run.add_argument(
        "--client-gpus",
        type=float,
        default=gpus,
        help=f"share of a GPU a Flower client takes, such as 0.25 (default here {gpus:g})",
    )
    return parser


def _default_resources() -> tuple[int, float]:
    """Return CPUs and GPU share per client: one CPU, and the GPU shared by as many clients."""
    share = 1 / (os.cpu_count() or 1)
    return 1, max(share, 0.25) if torch.cuda.is_available() else 0.0


def _list(options: argparse.Namespace) -> int:
    for table in tables():
        print(table)
        for preset in presets(table):
            print(f"  {preset.label}")
    return FINISHED


def _run(options: argparse.Namespace) -> int:
    overrides = parse_overrides(options.overrides)
    for key in ("engine", "device", "max-minutes", "results-dir", "data-dir", "resume"):
        if (value := getattr(options, key.replace("-", "_"))) is not None:
            overrides[key] = value
    chosen = presets(options.selection)
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds} is not allowed: it is at least 1")
    configs = [config for preset in chosen for config in _cells(preset, overrides, options.seeds)]
    if len({run_path(config) for config in configs}) < len(configs):
        raise ConfigError("two runs would share one run directory: leave name to the presets")
    for config in configs:
        preflight(config, client_gpus=options.client_gpus)
    statuses = []
    for config in configs:
        statuses.append(_run_cell(config, options))
        if statuses[-1] == INTERRUPTED_RUN:
            return INTERRUPTED_RUN
    if len(chosen) > 1 and statuses.count(FINISHED) == len(configs):
        first_seed = configs[:: options.seeds]
        path = run_path(configs[0]).parents[1] / "comparison.png"
        save_comparison(path, first_seed)
        print(f"figure: {path}", flush=True)
    return next((status for status in (FAILED, STOPPED) if status in statuses), FINISHED)


def _cells(preset: Preset, overrides: dict[str, Any], seeds: int) -> list[RunConfig]:
    """Return the preset's configuration for `seeds` seeds, from the given one up."""
    if preset.values.get("engine") == "centralized":
        overrides = {key: value for key, value in overrides.items() if key != "engine"}
    first = preset.config(overrides)
    return [first.with_values(seed=first.seed + number) for number in range(seeds)]


def _run_cell(config: RunConfig, options: argparse.Namespace) -> int:
    try:
        return launch(config, client_cpus=options.client_cpus, client_gpus=options.client_gpus)
    except Exception as error:  # the other cells shall have their turn
        if not isinstance(error, ValueError | RunError):
            traceback.print_exc()
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
