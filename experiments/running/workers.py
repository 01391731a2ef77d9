"""Running cells in parallel processes: `python -m experiments run TABLE --jobs N`.

A small model cannot use several cores well, but one cell per core, with `threads = 1`, can. A
worker reads its configuration from standard input and ends with the exit status of its cell.
"""

import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from experiments import ROOT
from experiments.exit_status import ExitStatus
from experiments.running.cells import Cell
from experiments.running.launch import attempt, has_begun
from experiments.running.signals import die_with_parent, on_interrupt
from fedta_app.config import RunConfig, to_toml
from fedta_app.device.cpus import usable_cpus
from fedta_app.errors import ConfigError
from fedta_app.runs.directory import STOP_FILE, run_path
from fedta_app.runs.records import read_summary

_STATUSES = (ExitStatus.FINISHED, ExitStatus.STOPPED, ExitStatus.INTERRUPTED)  # beside FAILED


def check_jobs(cells: Sequence[Cell], jobs: int) -> None:
    """Raise ConfigError when so many cells cannot run at a time."""
    if jobs > 1 and any(cell.config.engine == "flower" for cell in cells):
        raise ConfigError(
            f"--jobs {jobs} is not allowed with engine = 'flower', which runs clients side by "
            "side itself: use --engine in-process, or --jobs 1"
        )


def threads_of_each(jobs: int) -> int:
    """Return the threads of each process where so many share the cores.

    More threads than cores are several times slower.
    """
    return max(1, usable_cpus() // jobs)


class Workers:
    """The processes that run the cells of a table.

    Parameters
    ----------
    jobs : int
        The most processes at a time; they share the cores.
    """

    def __init__(self, jobs: int) -> None:
        # By run directory: the process, and summary.json from before it.
        self._running: dict[Path, tuple[subprocess.Popen[str], dict[str, Any]]] = {}
        self._stopping = False
        self._environment = dict(os.environ)
        self._environment.setdefault("OMP_NUM_THREADS", str(threads_of_each(jobs)))
        paths = [str(ROOT), self._environment.get("PYTHONPATH", "")]
        self._environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

    def run(self, config: RunConfig) -> ExitStatus | None:
        """Run a cell and return how it ended; None if a stop was requested before."""
        if self._stopping:
            return None
        directory = run_path(config)
        before = read_summary(directory)
        (directory / STOP_FILE).unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "experiments.running.workers"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C goes to this process, which asks the cells to stop
        ) as worker:
            self._running[directory] = (worker, before)
            if self._stopping:  # asked for since the check above, of those that were running
                worker.kill()
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(to_toml(config))
            worker.stdin.close()
            for line in worker.stdout:
                print(f"[{config.name} seed {config.seed}] {line}", end="", flush=True)
        del self._running[directory]
        if worker.returncode in _STATUSES:
            return ExitStatus(worker.returncode)
        killed = worker.returncode < 0 and self._stopping
        return ExitStatus.INTERRUPTED if killed else ExitStatus.FAILED

    def stopped_by_interrupt(self) -> AbstractContextManager[None]:
        """Within the block, the first SIGINT asks the workers to stop, the second ends them."""

        def ask() -> None:
            self._stopping = True
            for directory, (worker, before) in list(self._running.items()):
                if has_begun(directory, before):
                    (directory / STOP_FILE).touch()
                else:
                    worker.kill()  # there is no round to wait for
            print(" stopping after these rounds (Ctrl-C again to end at once)", flush=True)

        def end() -> None:
            for directory, (worker, _) in list(self._running.items()):
                worker.kill()
                (directory / STOP_FILE).unlink(missing_ok=True)

        return on_interrupt(ask, end)


def main() -> ExitStatus:
    """Run the configuration that is read from standard input."""
    die_with_parent()
    config = RunConfig.from_mapping(tomllib.loads(sys.stdin.read()))
    # The parent removed earlier requests to stop: one that exists now is meant for this cell.
    return attempt(config, client_cpus=1, client_gpus=0.0, forget_stop=False)


if __name__ == "__main__":
    sys.exit(main())
