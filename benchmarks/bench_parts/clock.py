"""A contender that says where its rounds go: the in-process engine with a clock in its functions.

    python -m benchmarks.bench_parts.clock FOLDER

Every moment of a round counts once, for the innermost part that it lies in; "messages, the rest"
is what lies in none. Vectors travel as the configuration says: by shared memory they cost what
they cost on Flower's engine.
"""

import functools
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import client_app.app
import fedta_app.training.client
import strategies.exchange
import strategies.federated
from benchmarks.peers.task import write_result
from engine.inprocess import InProcessGrid
from experiments.running.launch import run_here
from fedta_app.config import RunConfig
from fedta_app.optim import SparseSGDM
from fedta_app.runs.finished_model import ModelKeeper
from fedta_app.runs.session import RunSession
from fedta_app.training.passes import Passes
from fedta_app.training.workspace import Workspace
from server_app.state import ServerState
from strategies.federated import FederatedStrategy
from strategies.reading import ReplyReader

REST = "messages, the rest"
# Who is timed, by the name of the part; a function is timed where it is used.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "transport, down": [
        (strategies.federated, "pack_many"),
        (strategies.federated, "release"),
        (client_app.app, "unpack_many"),
    ],
    "load weights, form the update": [(client_app.app, "train_client")],
    "images": [(Workspace, "client_data"), (Workspace, "inputs")],
    "forward and backward": [(Passes, "__call__")],
    "optimizer": [
        (fedta_app.training.client, "make_optimizer"),
        (SparseSGDM, "zero_grad"),
        (SparseSGDM, "step"),
    ],
    "transport, up": [
        (client_app.app, "outbox"),
        (client_app.app, "pack_many"),
        (strategies.exchange, "unpack_many"),
        (strategies.exchange, "release"),
    ],
    "checks of replies": [(ReplyReader, "check"), (ReplyReader, "read")],
    "aggregation": [(FederatedStrategy, "aggregate_train")],
    "evaluation": [(ServerState, "measure")],
    "records and checkpoint": [(RunSession, "add"), (ModelKeeper, "after_round")],
    REST: [(InProcessGrid, "_answer")],  # of a client, while the replies are added up
}


class PartClock:
    """Adds up the seconds of parts that may lie in each other.

    Examples
    --------
    >>> clock = PartClock()
    >>> with clock.within("outer"):
    ...     with clock.within("inner"):
    ...         pass
    >>> sorted(clock.read())
    ['inner', 'messages, the rest', 'outer']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [REST]
        self._since = time.perf_counter()

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count the block for a part, but for what lies in parts within it."""
        self.read()
        self._inside.append(part)
        try:
            yield
        finally:
            self.read()
            self._inside.pop()

    def read(self) -> dict[str, float]:
        """Return the seconds of all parts until now."""
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now
        return dict(self.seconds)

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Put a function of a module or class behind the clock, for the rest of the process."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.within(part):
                return function(*arguments, **options)

        setattr(owner, name, timed)


def run_timed(config: RunConfig) -> tuple[list[float], list[dict[str, float]]]:
    """Run in this process; return when the first round began and each ended, and their parts."""
    clock = PartClock()
    for part, functions in PARTS.items():
        for owner, name in functions:
            clock.watch(owner, name, part)
    stamps: list[float] = []
    readings: list[dict[str, float]] = []
    add = RunSession.add

    def add_and_read(session: RunSession, row: Any, state: Any) -> None:
        add(session, row, state)
        if row.phase != "train":  # the last one is that before the first round
            stamps.clear()
            readings.clear()
        stamps.append(time.time())
        readings.append(clock.read())

    RunSession.add = add_and_read  # type: ignore[method-assign, assignment]
    run_here(config)
    rounds = [
        {part: after.get(part, 0.0) - before.get(part, 0.0) for part in PARTS}
        for before, after in itertools.pairwise(readings)
    ]
    return stamps, rounds


def main(folder: str) -> None:
    """Do the task of a folder."""
    asked = json.loads((Path(folder) / "task.json").read_text())
    stamps, rounds = run_timed(RunConfig.from_mapping(asked["config"]))
    write_result(folder, stamps, parts=rounds)


if __name__ == "__main__":
    main(sys.argv[1])
