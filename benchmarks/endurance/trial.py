"""What the trials share: their options, and a small run in this process or by its command."""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.jobs import set_words
from experiments.running.launch import attempt
from fedta_app.config import RunConfig
from fedta_app.runs.directory import run_path


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


def play(values: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Run a configuration in this process, below a folder.

    Returns
    -------
    str
        The sha256 of the final weights, or what the run failed with.
    str
        All that it printed.
    """
    output = io.StringIO()
    config = RunConfig.from_mapping({**values, "results-dir": str(folder)})
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        attempt(config, client_cpus=1, client_gpus=None)
    summary = json.loads((run_path(config) / "summary.json").read_text())
    return str(summary.get("final-weights-sha256") or summary.get("reason")), output.getvalue()
