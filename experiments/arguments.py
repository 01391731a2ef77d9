"""The command line of `python -m experiments`: its commands and their options."""

import argparse
import math
from pathlib import Path
from typing import Any

from experiments.running.scales import scales
from fedta_app.errors import ConfigError


def _gpu_share(text: str) -> float | None:
    """Read a share of a GPU; None stands for one that is measured."""
    return None if text == "auto" else float(text)


_OPTIONS: dict[str, dict[str, Any]] = {
    "selection": {"metavar": "TABLE[/PRESET]", "help": "* in a preset's name stands for anything"},
    "table": {"nargs": "?", "metavar": "TABLE", "help": "default: every table"},
    "--scale": {"choices": scales(), "default": "", "help": "default: full scale"},
    "--engine": {"choices": ["flower", "in-process"], "help": "default: the preset's"},
    "--device": {"help": "auto, cpu, cuda or cuda:N"},
    "--results-dir": {"help": "where run directories go (default ~/fedta/runs)"},
    "--data-dir": {"help": "where data sets are (default ~/fedta/data)"},
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "dest": "overrides",
        "help": "in place of the preset's; once for each key (pyproject.toml lists them)",
    },
    "--seeds": {
        "type": int,
        "metavar": "N",
        "help": "N seeds from the first up (default: the table's)",
    },
    "--jobs": {"type": int, "default": 1, "metavar": "N", "help": "N cells at a time"},
    "--max-minutes": {"type": float, "help": "stop cleanly before this"},
    "--resume": {"action": argparse.BooleanOptionalAction, "help": "default: resume"},
    "--skip-kept": {"action": "store_true", "help": "leave out cells that results/ has records of"},
    "--client-cpus": {"type": int, "default": 1, "help": "CPUs a Flower client takes (default 1)"},
    "--client-gpus": {
        "type": _gpu_share,
        "metavar": "SHARE",
        "help": "of a GPU that a Flower client takes, such as 0.25, or auto: measured (default)",
    },
    "--session-minutes": {
        "type": float,
        "default": 180.0,
        "help": "of a Colab session (default 180)",
    },
    "--trials": {
        "type": int,
        "default": 20,
        "help": "in all (default 20), or every point of a space of lists once",
    },
    "--for": {
        "dest": "pattern",
        "metavar": "PATTERN",
        "help": "presets that get the values, such as nc5-*",
    },
    "--records": {"type": Path, "help": "default: results"},
    "--out": {"type": Path, "help": "default: results, or where the records are"},
}
_CELLS = (
    "selection", "--scale", "--engine", "--device", "--results-dir", "--data-dir", "--set"
)  # fmt: skip
_RESOURCES = ("--client-cpus", "--client-gpus")
_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "list": ("show the tables and their presets", ()),
    "run": (
        "run a table, or one preset of it",
        (*_CELLS, "--seeds", "--jobs", "--max-minutes", "--resume", "--skip-kept", *_RESOURCES),
    ),
    "plan": (
        "say what a table will take, before anything runs",
        (*_CELLS, "--seeds", "--jobs", "--skip-kept", "--session-minutes"),
    ),
    "tune": (
        "search a preset's hyper-parameters",
        (*_CELLS, "--max-minutes", *_RESOURCES, "--trials", "--for", "--out"),
    ),
    "collect": ("keep finished cells as small records", (*_CELLS, "--seeds", "--out")),
    "report": (
        "write tables and figures from the records",
        ("table", "--scale", "--records", "--out"),
    ),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of a command line; the command's name is the option `command`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Tables of presets: run them, and report what they say.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (purpose, options) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        for option in options:
            command.add_argument(option, **_OPTIONS[option])
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Raise ConfigError for a number that is out of range."""
    for name, value in vars(options).items():
        option = f"--{name.replace('_', '-')}"
        if name in ("seeds", "jobs", "trials") and value is not None and value < 1:
            raise ConfigError(f"{option} {value} is not allowed: it is at least 1")
        if name.endswith("_minutes") and value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} {value:g} is not allowed: it is above 0, and finite")
