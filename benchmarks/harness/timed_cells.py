"""Run `python -m experiments` with a clock on what a run is for: training rounds and measurements.

    python -m benchmarks.harness.timed_cells FILE run TABLE/PRESET ...

FILE gets the seconds that rounds of training took, and measurements with them, round 0 included.
What is left of the wall time is start-up, data, head and mask.
"""

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
    clock = Clock()
    for phase in (Start, Train, centralized.Train):
        clock.watch(phase, "run_round")
    status = main(sys.argv[2:])
    write_atomically(Path(sys.argv[1]), f"{clock.seconds}\n")
    sys.exit(status)
