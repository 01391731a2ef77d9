"""The command line of `fedta` (`python -m experiments`): its commands and their options."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.running.scales import scales
from fedta_app.errors import ConfigError
from fedta_app.files import as_folder


class Number(NamedTuple):
    """A number of an option: how it is read from its text, and which are allowed."""

    read: Callable[[str], float | None]
    fits: Callable[[Any], bool]
    allowed: str


def _whole(most: int, why: str = "") -> Number:
    allowed = f"a whole number from 1 to {most}{why}"
    return Number(int, lambda value: 1 <= value <= most, allowed)


def _minutes(least: float, allowed: str) -> Number:
    return Number(float, lambda value: least <= value < math.inf, allowed)


def _gpu_share(text: str) -> float | None:
    """Read a share of a GPU; None stands for one that is measured."""
    return None if text == "auto" else float(text)


def _is_gpu_share(share: float | None) -> bool:
    """Return whether Ray, which counts in ten-thousandths of a GPU, can give that."""
    return share in (None, 0) or 1e-4 <= share <= 1 or (1 < share < 1e4 and share == int(share))


_CPUS = os.cpu_count() or 1
_NUMBERS = {
    "seeds": _whole(1000),
    "trials": _whole(10_000),
    "jobs": _whole(4 * _CPUS, f", four for each of this machine's {_CPUS} CPUs"),
    "client_cpus": _whole(_CPUS, ", the CPUs of this machine"),
    "client_gpus": Number(
        _gpu_share, _is_gpu_share, "auto, 0, a share from 0.0001 to 1, or a whole number of GPUs"
    ),
    "max_minutes": _minutes(1e-9, "a finite number above 0"),
    "session_minutes": _minutes(1.0, "a finite number of at least 1"),
}
_FOLDERS = ("results_dir", "data_dir", "cache_dir", "records", "out")

_OPTIONS: dict[str, dict[str, Any]] = {
    "selection": {"metavar": "TABLE[/PRESET]", "help": "* in a preset's name stands for anything"},
    "shown": {
        "nargs": "?",
        "metavar": "TABLE[/PRESET]",
        "help": "default: every table; of one preset, its keys",
    },
    "table": {"nargs": "?", "metavar": "TABLE", "help": "default: every table"},
    "--scale": {"choices": scales(), "default": "", "help": "default: full scale"},
    "--engine": {"choices": ["flower", "in-process"], "help": "default: the preset's"},
    "--device": {"help": "auto, cpu, cuda or cuda:N"},
    "--results-dir": {
        "metavar": "FOLDER",
        "help": "where run directories go (default ~/fedta/runs)",
    },
    "--data-dir": {"metavar": "FOLDER", "help": "of data sets (default ~/fedta/data)"},
    "--set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "dest": "overrides",
        "help": "in place of the preset's; once for each key (pyproject.toml lists them)",
    },
    "--name": {
        "help": "of the runs, in place of TABLE/PRESET, so that a variant by --set does not meet "
        "the preset's own runs; several presets are NAME/PRESET",
    },
    "runs": {
        "nargs": "+",
        "metavar": "RUN",
        "help": "a run directory, or the folder above its seeds; also without --results-dir in "
        "front, such as demo/masked",
    },
    "--seeds": {
        "metavar": "N",
        "help": "N seeds from the first up (default: the table's)",
    },
    "--jobs": {"default": 1, "metavar": "N", "help": "N cells at a time"},
    "--max-minutes": {"metavar": "MINUTES", "help": "stop cleanly before this"},
    "--resume": {"action": argparse.BooleanOptionalAction, "help": "default: resume"},
    "--skip-kept": {"action": "store_true", "help": "leave out cells that results/ has records of"},
    "--client-cpus": {
        "default": 1,
        "metavar": "N",
        "help": "CPUs a Flower client takes (default 1)",
    },
    "--client-gpus": {
        "metavar": "SHARE",
        "help": "of a GPU that a Flower client takes, such as 0.25, or auto: measured (default)",
    },
    "--session-minutes": {
        "default": 180.0,
        "metavar": "MINUTES",
        "help": "of a Colab session (default 180)",
    },
    "--trials": {
        "default": 20,
        "metavar": "N",
        "help": "in all (default 20), or every point of a space of lists once",
    },
    "--grid": {
        "action": "append",
        "default": [],
        "metavar": "KEY=[VALUE,...]",
        "help": "try these, in place of the table's [tune]; once for each key",
    },
    "--for": {
        "dest": "pattern",
        "metavar": "PATTERN",
        "help": "presets that get the values, such as nc5-*",
    },
    "--cache-dir": {"metavar": "FOLDER", "help": "default ~/fedta/cache"},
    "--clear": {"action": "store_true", "help": "delete all entries"},
    "--records": {"metavar": "FOLDER", "help": "default: results"},
    "--out": {
        "metavar": "FOLDER",
        "help": "folder to write to (default: results; for report, the folder of the records; for "
        "compare, comparison)",
    },
    "run": {"type": Path, "metavar": "RUN", "help": "the directory that the run printed"},
    "file": {"type": Path, "metavar": "FILE", "help": "to write: NAME.safetensors, and NAME.md"},
    "--weights": {"choices": ["last", "best"], "default": "last", "help": "best: by validation"},
    "--split": {"choices": ["test", "validation"], "default": "test", "help": "default: test"},
}
_CELLS = (
    "selection", "--scale", "--engine", "--device", "--results-dir", "--data-dir", "--set"
)  # fmt: skip
_RESOURCES = ("--client-cpus", "--client-gpus")
_COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "list": (
        "show the tables and their presets, or the keys of one preset",
        ("shown", "--scale", "--set"),
    ),
    "run": (
        "run a table, or one preset of it",
        (
            *_CELLS,
            "--name",
            "--seeds",
            "--jobs",
            "--max-minutes",
            "--resume",
            "--skip-kept",
            *_RESOURCES,
        ),
    ),
    "plan": (
        "say what a table will take, before anything runs",
        (*_CELLS, "--name", "--seeds", "--jobs", "--skip-kept", "--session-minutes"),
    ),
    "tune": (
        "search a preset's hyper-parameters",
        (*_CELLS, "--name", "--max-minutes", *_RESOURCES, "--grid", "--trials", "--for", "--out"),
    ),
    "compare": (
        "draw runs together, and say in what they differ",
        ("runs", "--results-dir", "--out"),
    ),
    "collect": ("keep finished cells as small records", (*_CELLS, "--seeds", "--out")),
    "cache": ("show what is kept for later runs, or delete it", ("--cache-dir", "--clear")),
    "report": (
        "write tables and figures from the records",
        ("table", "--scale", "--records", "--out"),
    ),
    "evaluate": (
        "measure a finished run's model by class and by client",
        ("run", "--weights", "--split", "--device", "--data-dir"),
    ),
    "export": ("write a finished run's model as a file of its own", ("run", "file", "--weights")),
}


def program() -> list[str]:
    """Return the words that call this command line: `fedta`, or `python -m experiments`."""
    return ["fedta"] if Path(sys.argv[0]).stem == "fedta" else ["python", "-m", "experiments"]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line; the command's name is the option `command`."""
    parser = argparse.ArgumentParser(
        prog=" ".join(program()),
        description="Run experiments in federated learning, and report their results. A preset is "
        "one configuration, a table is a group of presets that answers one question, and a cell is "
        "a preset with one seed.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, (purpose, options) in _COMMANDS.items():
        # Without abbreviations, a command that is printed again is read as it was typed.
        command = commands.add_parser(name, help=purpose, allow_abbrev=False)
        for option in options:
            command.add_argument(option, **_OPTIONS[option])
    return parser.parse_args(arguments)


def check(options: argparse.Namespace) -> None:
    """Read the numbers and the folders among the options, in place.

    Raises
    ------
    ConfigError
        For one that is not allowed.
    """
    for name, value in vars(options).items():
        said = f"--{name.replace('_', '-')} {_shown(value)}"
        if value == [] and name in {*_NUMBERS, *_FOLDERS}:  # argparse made that of "--"
            raise ConfigError(f"--{name.replace('_', '-')} -- is not allowed: it has no value")
        if name in _NUMBERS and isinstance(value, str):
            setattr(options, name, _number(value, _NUMBERS[name], said))
        elif name in _FOLDERS and value is not None:
            if not str(value).strip():  # an unset variable of the shell: not the current folder
                raise ConfigError(f"{said} is not allowed: it names no folder")
            setattr(options, name, as_folder(value, said))


def _number(text: str, number: Number, said: str) -> float | None:
    with suppress(ValueError):
        value = number.read(text)
        if number.fits(value):
            return value
    raise ConfigError(f"{said} is not allowed: it is {number.allowed}")


def _shown(value: object) -> str:
    """Return a value as a part of a sentence, which is one line."""
    text = str(value)
    text = text if text.isprintable() and text.strip() else repr(text)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
