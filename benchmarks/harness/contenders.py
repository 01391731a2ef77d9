"""Who is measured: the bare loop, our engines, Flower's stock app, pfl-research."""

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness.jobs import Prepared
from benchmarks.harness.processes import BenchError, Memory, run_apart
from benchmarks.peers.pfl_env import PeerError, check_pfl, pfl_python

EXTRA_ROUNDS = 2  # the first warms up; the last measures and saves
WATCHED_ROUNDS = 3  # where memory is what one wants to know


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes
    ----------
    kind : str
        "bare", "bare-kernels", "in-process", "parts" (in-process with a clock in its functions),
        "flower", "stock" or "pfl".
    actors : int
        Clients that train side by side, sharing the cores; of a bare loop, its processes.
    density : float
        Share of the backbone's weights that are trained.
    """

    name: str
    kind: str
    actors: int = 1
    density: float = 1.0


BARE = Contender("bare loop", "bare")
# What an engine around the same steps can reach: on all cores together, and each core by itself.
LIMITS = (
    Contender("bare loop, our kernels", "bare-kernels"),
    Contender("bare loop, our kernels, 2 processes", "bare-kernels", actors=2),
)
CONTENDERS = {
    contender.name: contender
    for contender in (
        BARE,
        *LIMITS,
        Contender("in-process", "in-process"),
        Contender("flower, 1 actor", "flower"),
        Contender("flower, 2 actors", "flower", actors=2),
        Contender("in-process, density 0.1", "in-process", density=0.1),
        Contender("flower, 1 actor, density 0.1", "flower", density=0.1),
        Contender("flower, 2 actors, density 0.1", "flower", actors=2, density=0.1),
        Contender("stock Flower, 1 actor", "stock"),
        Contender("stock Flower, 2 actors", "stock", actors=2),
        Contender("pfl-research", "pfl"),
    )
}


@dataclass(frozen=True)
class Timing:
    """What one run took.

    Attributes
    ----------
    seconds : list of float
        Of each round but the first and the last.
    startup : float
        Seconds from the start of the process to that of the first round.
    parts : list of dict
        Of a contender that says it: the seconds of each part, for each of these rounds.
    """

    seconds: list[float]
    startup: float
    parts: list[dict[str, float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds per round."""
        return statistics.median(self.seconds)


class Runner:
    """Runs contenders on a prepared job, each in a fresh process.

    Parameters
    ----------
    prefix : sequence of str
        Put before every command, such as `nice -5` or `taskset -c 0,1`.
    pfl : Path, optional
        A Python that has pfl; without it, one is made.
    """

    def __init__(
        self, prepared: Prepared, *, prefix: Sequence[str] = (), pfl: Path | None = None
    ) -> None:
        self._prepared = prepared
        self._prefix = list(prefix)
        self._pfl = pfl

    def check(self, contender: Contender) -> None:
        """Raise PeerError, in one sentence, where a contender cannot run here."""
        if contender.kind == "pfl":
            wanted = self._prepared.task.local_steps * self._prepared.task.batch_size
            if self._prepared.smallest < wanted:
                raise PeerError(
                    f"pfl stops at the end of a client's {self._prepared.smallest} images, which "
                    f"the {self._prepared.task.local_steps} steps of this job pass"
                )
            self._pfl = self._pfl or pfl_python()
            check_pfl(self._pfl)

    def time(self, contender: Contender, rounds: int) -> Timing:
        """Time as many rounds as asked for."""
        with tempfile.TemporaryDirectory(prefix="fedta-bench-") as folder:
            self._write(contender, Path(folder), rounds + EXTRA_ROUNDS)
            run_apart(self._command(contender, folder))
            result = json.loads(Path(folder, "result.json").read_text())
        stamps = result["stamps"]
        if len(stamps) != rounds + EXTRA_ROUNDS + 1:
            raise BenchError(f"{contender.name} noted {len(stamps)} times")
        seconds = [after - before for before, after in itertools.pairwise(stamps)]
        parts = result.get("parts", [])[1:-1]
        return Timing(seconds[1:-1], stamps[0] - result["started"], parts)

    def watch(self, contender: Contender) -> Memory:
        """Return the peak of the memory in a few rounds."""
        with tempfile.TemporaryDirectory(prefix="fedta-bench-") as folder:
            self._write(contender, Path(folder), WATCHED_ROUNDS)
            return run_apart(self._command(contender, folder), watch=True)

    def _write(self, contender: Contender, folder: Path, rounds: int) -> None:
        config = self._prepared.config(
            density=contender.density, actors=contender.actors, rounds=rounds
        )
        places = {
            "engine": "in-process" if contender.kind in ("in-process", "parts") else "flower",
            "results-dir": str(folder),
        }
        task = replace(self._prepared.task, rounds=rounds)
        task.write(
            folder, kind=contender.kind, actors=contender.actors, config={**config, **places}
        )

    def _command(self, contender: Contender, folder: str) -> list[str]:
        modules = {
            "bare": "peers.bare_loop",
            "bare-kernels": "harness.bare_kernels",
            "parts": "bench_parts.clock",
            "pfl": "peers.pfl_rounds",
        }
        python = str(self._pfl) if contender.kind == "pfl" else sys.executable
        module = f"benchmarks.{modules.get(contender.kind, 'harness.engines')}"
        return [*self._prefix, python, "-m", module, folder]
