"""Cells side by side, each in a process of its own: `python -m experiments run TABLE --jobs N`.

Small models leave a machine with several cores idle; a cell with `threads = 1` per core keeps it
busy. A worker reads its configuration from standard input and ends with the cell's exit status.
"""

import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from experiments.running.launch import INTERRUPTED_RUN, attempt
from experiments.running.signals import die_with_parent, on_interrupt
from fedta_app.config import RunConfig, to_toml
from fedta_app.runs.directory import STOP_FILE, run_path

NO_TIME = -1000  # no exit status, and no signal
_ROOT = Path(__file__).resolve().parents[2]


class Session:
    """The time that the cells of one command share.

    Parameters
    ----------
    max_minutes : float
        From now on; 0 for no limit.
    """

    def __init__(self, max_minutes: float) -> None:
        self._minutes = max_minutes
        self._began = time.monotonic()
        self._first = True

    def limited(self, config: RunConfig) -> RunConfig | None:
        """Return a configuration that stops before the time is up; None when it is up."""
        if not self._minutes:
            return config
        left = self._minutes - (time.monotonic() - self._began) / 60
        if left <= 0 and not self._first:
            return None
        self._first = False  # however short the time, a command does something
        own = config.max_minutes or left
        return config.with_values(max_minutes=max(min(left, own), 1e-9))


def run_side_by_side(
    configs: Sequence[RunConfig], session: Session, *, jobs: int
) -> list[int | None]:
    """Run configurations that passed `preflight`, `jobs` at a time.

    Ctrl-C asks all of them to stop after their round and starts no more; a second one ends them at
    once.

    Returns
    -------
    list of int or None
        Exit statuses in the order of `configs`; None for a cell that had no turn, `NO_TIME` for one
        that had none because the session was over.
    """
    pool = _Pool(jobs, session)
    with pool.stopped_by_interrupt(), ThreadPoolExecutor(jobs) as threads:
        return list(threads.map(pool.run, configs))


class _Pool:
    """The workers that are alive."""

    def __init__(self, jobs: int, session: Session) -> None:
        self._session = session
        self._workers: dict[Path, subprocess.Popen[str]] = {}
        self._stopping = False
        self._environment = dict(os.environ)
        # More threads than cores cost a multiple of the time.
        share = max(1, (os.cpu_count() or 1) // jobs)
        self._environment.setdefault("OMP_NUM_THREADS", str(share))
        paths = [str(_ROOT), self._environment.get("PYTHONPATH", "")]
        self._environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

    def run(self, config: RunConfig) -> int | None:
        """Run one cell to its end, or not at all once a stop was asked for."""
        if self._stopping:
            return None
        limited = self._session.limited(config)
        if limited is None:
            return NO_TIME
        directory = run_path(config)
        (directory / STOP_FILE).unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-u", "-m", "experiments.running.workers"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for the runner, which asks the cells to stop
        ) as worker:
            self._workers[directory] = worker
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.write(to_toml(limited))
            worker.stdin.close()
            for line in worker.stdout:
                print(f"[{config.name} seed {config.seed}] {line}", end="", flush=True)
        del self._workers[directory]
        killed = worker.returncode < 0 and self._stopping
        return INTERRUPTED_RUN if killed else worker.returncode

    def stopped_by_interrupt(self) -> AbstractContextManager[None]:
        """Have the first SIGINT ask the workers to stop, and the second end them."""

        def ask() -> None:
            self._stopping = True
            for directory in list(self._workers):
                (directory / STOP_FILE).touch()
            print(" stopping after these rounds (Ctrl-C again to end at once)", flush=True)

        def end() -> None:
            for worker in list(self._workers.values()):
                worker.kill()

        return on_interrupt(ask, end)


def main() -> int:
    """Run the configuration that standard input holds."""
    die_with_parent()
    config = RunConfig.from_mapping(tomllib.loads(sys.stdin.read()))
    # The runner takes old requests to stop away: one that is there now is meant for this cell.
    return attempt(config, client_cpus=1, client_gpus=0.0, forget_stop=False)


if __name__ == "__main__":
    sys.exit(main())
