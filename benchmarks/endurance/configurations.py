"""Odd configurations: each is refused in one sentence, or does what it says; never a traceback.

    python -m benchmarks.endurance.configurations [--number 1000] [--seed 0] [--json FILE]

One to three keys of a small run get values at random: other options and sizes, numbers beyond all
bounds, values of another type, or the key is misspelt. What is accepted has to hold the values that
were given, and is run for a round: it has to finish, or to fail in one sentence as well.
"""

import collections
import contextlib
import io
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.endurance.trial import options
from benchmarks.harness.report import facts, write
from experiments.exit_status import ExitStatus
from experiments.running.launch import attempt, preflight
from fedta_app.config import KEYS, RunConfig
from fedta_app.errors import ConfigError, RunError

BASE: dict[str, Any] = {
    "num-clients": 6, "fraction-train": 0.5, "num-server-rounds": 1, "local-steps": 1,
    "eval-size": 20, "probe-rounds": 1, "calibration-rounds": 1, "calibration-examples": 4,
    "threads": 1, "engine": "in-process", "checkpoint-every": 1, "resume": False,
}  # fmt: skip
# Where files are, and what would start other programs or go to the network.
LEFT_ALONE = {"results-dir", "data-dir", "cache-dir", "engine", "logger", "name"}
DOWNLOADED = "cifar100"  # where it is missing
ODD: tuple[Any, ...] = (
    "", "x", "nan", "ü\n", "0", -1, 0, 1, 2, 3, 2**63, 0.5, 1e-9, -0.0, 1e30, float("inf"),
    float("nan"), True, False, None, [], [1], {}, {"x": 1}, b"x",
)  # fmt: skip
SECONDS = 60  # longer than any of these runs takes


def odd_values(generator: random.Random) -> dict[Any, Any]:
    """Return a configuration of which one to three keys are odd."""
    values: dict[Any, Any] = {**BASE, "head": generator.choice(("random", "ridge"))}
    names = sorted(KEYS.keys() - LEFT_ALONE)
    for _ in range(generator.randint(1, 3)):
        name = generator.choice(names)
        kind = generator.random()
        if kind < 0.05:
            place = generator.randrange(len(name))
            values[name[:place] + name[place + 1 :]] = KEYS[name].default
        elif kind < 0.08:
            values[generator.choice((None, 1, b"seed", ("seed",)))] = 1
        elif kind < 0.75:
            values[name] = likely(name, generator)
        else:
            values[name] = generator.choice(ODD)
    return values


def likely(name: str, generator: random.Random) -> Any:
    """Return a value that a key may well have: an option, or half or twice its default."""
    key = KEYS[name]
    if key.options:
        return generator.choice([option for option in key.options if option != DOWNLOADED])
    if isinstance(key.default, bool):
        return not key.default
    if isinstance(key.default, int | float):
        return type(key.default)(BASE.get(name, key.default) * generator.choice((0.5, 2)))
    return key.default


class Found(Exception):
    """A fault; the message says which."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """End what takes longer than SECONDS."""

    def stop(signum: int, frame: object) -> None:
        raise Found(f"it still ran after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_sentence(text: str) -> None:
    """Raise Found unless the text is one line that says something."""
    if len(text) < 10 or "\n" in text.strip():
        raise Found(f"its message is not a sentence: {text!r}")


def outcome(values: Mapping[Any, Any], folder: Path) -> str:
    """Return how a configuration ended: refused, finished, or failed in a sentence.

    Raises
    ------
    Found
        If it was accepted though a value is another one, or failed without a sentence.
    """
    try:
        config = RunConfig.from_mapping(values)
    except ConfigError as error:
        check_sentence(str(error))
        return "refused"
    for name, value in values.items():
        held = config.to_mapping()[name]
        if held != value or isinstance(held, bool) != isinstance(value, bool):
            raise Found(f"{name} = {value!r} was accepted, and became {held!r}")
    config = config.with_values(results_dir=str(folder / "runs"), cache_dir="", name="odd")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), time_limit():
        try:
            preflight(config)
        except (ConfigError, RunError, ValueError) as error:
            check_sentence(str(error))
            return "refused"
        status = attempt(config, client_cpus=1, client_gpus=None)
    said = output.getvalue()
    if "Traceback" in said:
        raise Found(f"it printed a traceback: {said[-2000:]}")
    if status == ExitStatus.FINISHED:
        return "finished"
    failures = [line for line in said.splitlines() if line.startswith(("failed: ", "error: "))]
    if not failures:
        raise Found(f"it ended with {status!r} and no sentence: {said[-2000:]}")
    return "failed in a sentence"


def main(arguments: list[str] | None = None) -> int:
    """Try them, print how many ended how, and return 1 if one ended otherwise."""
    asked = options(__doc__, arguments, counted="number", number=1000)
    counts: collections.Counter[str] = collections.Counter()
    faults = []
    with tempfile.TemporaryDirectory(prefix="odd-") as folder:
        for number in range(asked.number):
            values = odd_values(random.Random(f"{asked.seed} {number}"))
            try:
                counts[outcome(values, Path(folder))] += 1
            except Exception as error:
                changed = {k: v for k, v in values.items() if k not in BASE or BASE[k] != v}
                faults.append({"number": number, "values": repr(changed), "fault": str(error)})
                print(f"{number}: {changed}\n{traceback.format_exc(limit=-4)}", flush=True)
            if (number + 1) % 50 == 0:
                print(f"{number + 1}: {dict(counts)}, {len(faults)} faults", flush=True)
    write(asked.json, {**facts(), "outcomes": dict(counts), "faults": faults})
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
