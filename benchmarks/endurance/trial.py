"""What the trials share: their options, and the command of a small run."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.jobs import set_words


def options(
    about: str | None, arguments: list[str] | None, *, counted: str, number: int
) -> argparse.Namespace:
    """Return the options of a trial: how much of what is counted, --seed and --json.

    Parameters
    ----------
    about : str
        The trial's docstring.
    counted : str
        The option that says how much is tried, without its dashes.
    number : int
        Its default.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(f"--{counted}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def command(results: Path, values: Mapping[str, Any], engine: str = "in-process") -> list[str]:
    """Return the command that starts a run of demo/masked with these keys, or goes on with it."""
    words = set_words({"cache-dir": str(results / "cache"), **values})
    where = ["--seeds", "1", "--engine", engine, "--results-dir", str(results)]
    return [sys.executable, "-m", "experiments", "run", "demo/masked", *where, *words]
