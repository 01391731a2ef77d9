"""Run cells one after the other, with a clock on what they are for: training and measurements.

    python -m benchmarks.harness.timed_cells COMMANDS RESULT

COMMANDS is a JSON file with a list of commands, each a list of words as after `python -m
experiments`. RESULT gets a list with the wall time of each in seconds, and what of it rounds of
training took, and measurements with them, round 0 included. What is left is data, head and mask.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from experiments.__main__ import main
from fedta_app import centralized
from fedta_app.files import write_atomically
from fedta_app.training.evaluation import Start
from server_app.phases import Train


class Clock:
    """Adds up the time that methods take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: type, name: str) -> None:
        """Measure every call of a method from now on."""
        method = getattr(owner, name)

        def timed(*values: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*values)
            finally:
                self.seconds += time.perf_counter() - began

        setattr(owner, name, timed)


if __name__ == "__main__":
    commands, result = map(Path, sys.argv[1:])
    clock = Clock()
    for phase in (Start, Train, centralized.Train):
        clock.watch(phase, "run_round")
    seconds = []
    for words in json.loads(commands.read_text()):
        began, before = time.perf_counter(), clock.seconds
        if status := main(words):
            sys.exit(status)
        seconds.append((time.perf_counter() - began, clock.seconds - before))
    write_atomically(result, json.dumps(seconds) + "\n")
