"""The command line of `python -m experiments`: its commands and their options."""

import argparse
from pathlib import Path
from typing import Any

from experiments.running.scales import scales

RESULTS = Path(__file__).resolve().parent.parent / "results"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the command's name is the option `command`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Tables of presets: run them, and report what they say.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("list", help="show the tables and their presets")
    run = commands.add_parser("run", help="run a table, or one preset of it")
    _add_cells(run)
    _add_seeds(run)
    _add_jobs(run)
    _add_limit(run)
    run.add_argument("--resume", action=argparse.BooleanOptionalAction, help="default: resume")
    _add_kept(run)
    plan = commands.add_parser("plan", help="say what a table will take, before anything runs")
    _add_cells(plan)
    _add_seeds(plan)
    _add_jobs(plan)
    _add_kept(plan)
    plan.add_argument(
        "--session-minutes", type=float, default=180.0, help="of a Colab session (default 180)"
    )
    _add_resources(run)
    _add_tuning(commands)
    _add_results(commands)
    return parser


def _add_results(commands: Any) -> None:
    """Add the commands on finished cells."""
    collection = commands.add_parser("collect", help="keep finished cells as small records")
    _add_cells(collection)
    _add_seeds(collection)
    collection.add_argument("--out", type=Path, default=RESULTS, help="default: results")
    report = commands.add_parser("report", help="write tables and figures from the records")
    report.add_argument("table", nargs="?", metavar="TABLE", help="default: every table")
    report.add_argument("--scale", choices=scales(), default="", help="default: full scale")
    report.add_argument("--records", type=Path, default=RESULTS, help="default: results")
    report.add_argument("--out", type=Path, help="default: where the records are")


def _add_tuning(commands: Any) -> None:
    tuning = commands.add_parser("tune", help="search a preset's hyper-parameters")
    _add_cells(tuning)
    _add_limit(tuning)
    _add_resources(tuning)
    tuning.add_argument(
        "--trials",
        type=int,
        default=20,
        help="in all (default 20), or every point of a space of lists once",
    )
    tuning.add_argument(
        "--for",
        dest="pattern",
        metavar="PATTERN",
        help="presets that get the values, such as nc5-*",
    )
    tuning.add_argument("--out", type=Path, default=RESULTS, help="default: results")


def _add_cells(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which cells are meant."""
    parser.add_argument(
        "selection", metavar="TABLE[/PRESET]", help="* in a preset's name stands for anything"
    )
    parser.add_argument("--scale", choices=scales(), default="", help="default: full scale")
    parser.add_argument("--engine", choices=["flower", "in-process"], help="default: the preset's")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--results-dir", help="where run directories go (default ~/fedta/runs)")
    parser.add_argument("--data-dir", help="where data sets are (default ~/fedta/data)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="in place of the preset's; once for each key (pyproject.toml lists them)",
    )


def _add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="N seeds from the first up (default: the table's)"
    )


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="N cells at a time")


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-minutes", type=float, help="stop cleanly before this")


def _add_kept(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-kept", action="store_true", help="leave out cells that results/ has records of"
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--client-cpus", type=int, default=1, help="CPUs a Flower client takes (default 1)"
    )
    parser.add_argument(
        "--client-gpus",
        type=_gpu_share,
        metavar="SHARE",
        help="of a GPU that a Flower client takes, such as 0.25, or auto: measured (default)",
    )


def _gpu_share(text: str) -> float | None:
    """Read a share of a GPU; None stands for one that is measured."""
    return None if text == "auto" else float(text)
