"""Damaged checkpoints: the run goes on to the weights of an unbroken one, or says why it cannot.

    python -m benchmarks.endurance.checkpoints [--number 300] [--seed 0] [--json FILE]

A small run of SCAFFOLD with a ridge head, a calibrated mask and measured interference is stopped
before its last round, and each trial damages a copy of its checkpoints: bits and lengths of their
files, whose hashes then show it; or, with hashes that fit, what they hold: a value of another type
in place of one, or one that is gone. The same command has to end at the weights of a run that
nobody stopped, or with one sentence.
"""

import collections
import contextlib
import csv
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.endurance.trial import command, options
from benchmarks.harness.report import facts, write
from experiments.__main__ import main as give
from experiments.exit_status import ExitStatus
from fedta_app.runs.metrics import COSTS
from fedta_app.runs.session import INTERRUPTED, RunSession
from fedta_app.seeding import numpy_generator

KEYS = {
    "num-clients": 3, "num-classes-per-client": 4, "fraction-train": 1.0, "num-server-rounds": 3,
    "local-steps": 1, "eval-every": 1, "eval-size": 20, "calibration-rounds": 1, "threads": 1,
    "calibration-examples": 4, "strategy": "scaffold", "interference-every": 3, "head": "ridge",
    "name": "run",
}  # fmt: skip
STOPPED_AFTER = 2  # rounds of training, of 3
OTHERS: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "x", [], [None], {}, {"x": 1})


def change_state(path: Path, change: Callable[[dict[str, Any]], Any]) -> Any:
    """Change what a state.json holds, and its hash with it; return what `change` does."""
    stored = json.loads(path.read_text())
    del stored["sha256"]
    changed = change(stored["state"])
    text = json.dumps(stored, sort_keys=True)
    stored["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(stored))
    return changed


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in nested dictionaries and lists."""
    if path:
        yield path
    entries: Any = value.items() if isinstance(value, dict) else ()
    for key, entry in enumerate(value) if isinstance(value, list) else entries:
        yield from _places(entry, (*path, key))


def _change_a_value(state: dict[str, Any], generator: np.random.Generator) -> str:
    """Replace a value by one of another type, or remove it; say what was done."""
    found = list(_places(state))
    *way, key = found[generator.integers(len(found))]
    holder: Any = state
    for step in way:
        holder = holder[step]
    if isinstance(holder, dict) and generator.random() < 0.1:
        del holder[key]
        return f"{way} without {key}"
    # Where there is a number or none, there may be another, or none: that is no other type.
    kind = type(holder[key])
    missing = type(None)
    alike = {float: (float, int, missing), missing: (missing, float, int, str)}.get(kind, (kind,))
    odd = [value for value in OTHERS if type(value) not in alike]
    holder[key] = odd[generator.integers(len(odd))]
    return f"{way} {key} = {holder[key]!r}"


def _change_bytes(path: Path, generator: np.random.Generator) -> str:
    """Flip a bit, cut a file, or lengthen it; say what was done."""
    content = bytearray(path.read_bytes())
    place = int(generator.integers(len(content)))
    kind = generator.integers(3)
    if kind == 0:
        content[place] ^= 1 << int(generator.integers(8))
    path.write_bytes([content, content[:place], content + content[:place]][kind])
    return f"{path.name} by {['a flip', 'a cut', 'more'][kind]} at {place}"


def damage(run: Path, number: int, generator: np.random.Generator) -> tuple[str, list[str]]:
    """Damage the checkpoints of a run; return the kind of damage, and what exactly was done."""
    older, newest = sorted(run.glob("checkpoint/step-*/state.json"))
    if number % 3 == 0:
        weights = newest.with_name("weights.safetensors")
        return "bytes", [_change_bytes(weights if number % 2 else newest, generator)]
    states = (older, newest)[number % 2 :]
    done = [change_state(path, lambda state: _change_a_value(state, generator)) for path in states]
    return f"values of {len(states)}", done


def start(results: Path) -> tuple[ExitStatus, str]:
    """Give the command of the run below a folder; return its status, and all that it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = give(command(results, {**KEYS, "cache-dir": ""})[3:])
    return ExitStatus(status), said.getvalue()


End = tuple[str, list[dict[str, str]], list[str]]


def end_of(run: Path) -> End:
    """Return how a run ended.

    Returns
    -------
    str
        The sha256 of the final weights.
    list of dict
        The rows of metrics.csv without their costs.
    list of str
        The names in the run directory.
    """
    summary = json.loads((run / "summary.json").read_text())
    with (run / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    figures = [{name: row[name] for name in row if name not in COSTS} for row in rows]
    names = sorted(path.name for path in run.iterdir())
    return str(summary.get("final-weights-sha256")), figures, names


def stop_before_the_last(session: RunSession) -> str | None:
    """Return why to stop, after the second round of training."""
    last = session.rows[-1] if session.rows else None
    due = last is not None and (last.phase, last.round) == ("train", STOPPED_AFTER)
    return INTERRUPTED if due else None


def fault(results: Path, expected: End) -> tuple[str, str]:
    """Go on with a damaged run; return how it ended, and what is wrong with that, if anything."""
    status, said = start(results)
    if "Traceback" in said:
        return "a traceback", said
    if status == ExitStatus.FINISHED:
        same = end_of(results / "run/seed0") == expected
        wrong = "" if same else "it ended at other weights, rows or files"
        return "the weights of an unbroken run", wrong
    sentences = [line for line in said.splitlines() if line.startswith(("failed: ", "error: "))]
    return "a sentence", "" if sentences else f"it ended without a sentence: {said}"


def main(arguments: list[str] | None = None) -> int:
    """Damage checkpoints, print what became of the runs, and return 1 if one was not right."""
    asked = options(__doc__, arguments, counted="number", number=300)
    ends: collections.Counter[tuple[str, str]] = collections.Counter()
    faults = []
    with tempfile.TemporaryDirectory(prefix="checkpoints-") as folder:
        whole, half = Path(folder) / "whole", Path(folder) / "half"
        start(whole)
        expected = end_of(whole / "run/seed0")
        with patch.object(RunSession, "stop_reason", stop_before_the_last):
            start(half)
        for number in range(asked.number):
            generator = numpy_generator("mutation", asked.seed, number)
            results = Path(folder) / str(number)
            shutil.copytree(half, results)
            kind, done = damage(results / "run/seed0", number, generator)
            end, wrong = fault(results, expected)
            if kind == "bytes" and end == "a sentence":
                wrong = "the checkpoint before it is whole"
            ends[kind, end] += 1
            if wrong:
                faults.append({"number": number, "done": done, "wrong": wrong})
                print(f"{number}: {done}\n  {wrong[-2000:]}", flush=True)
            shutil.rmtree(results)
            if (number + 1) % 50 == 0:
                print(f"{number + 1} checkpoints, {len(faults)} faults", flush=True)
    outcomes: dict[str, dict[str, int]] = {}
    for (kind, end), count in sorted(ends.items()):
        outcomes.setdefault(kind, {})[end] = count
        print(f"{kind}: {count} ended with {end}")
    write(asked.json, {**facts(), "outcomes": outcomes, "faults": faults})
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
