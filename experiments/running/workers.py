"""Cells side by side, each in a process of its own: `python -m experiments run TABLE --jobs N`.

Small models leave a machine with several cores idle; a cell with `threads = 1` per core keeps it
busy. A worker reads its configuration from standard input and ends with the cell's exit status.
"""

import os
import subprocess
import sys
import tomllib
from contextlib import AbstractContextManager
from pathlib import Path

from experiments.running.launch import ExitStatus, attempt
from experiments.running.signals import die_with_parent, on_interrupt
from fedta_app.config import RunConfig, to_toml
from fedta_app.runs.directory import STOP_FILE, run_path

_ROOT = Path(__file__).resolve().parents[2]
_STATUSES = (ExitStatus.FINISHED, ExitStatus.STOPPED, ExitStatus.INTERRUPTED)  # beside FAILED


class Workers:
    """The processes that run cells of a table now.

    Parameters
    ----------
    jobs : int
        How many there are at a time at most, which share the cores.
    """

    def __init__(self, jobs: int) -> None:
        self._running: dict[Path, subprocess.Popen[str]] = {}
        self._stopping = False
        self._environment = dict(os.environ)
        # More threads than cores cost a multiple of the time.
        share = max(1, (os.cpu_count() or 1) // jobs)
        self._environment.setdefault("OMP_NUM_THREADS", str(share))
        paths = [str(_ROOT), self._environment.get("PYTHONPATH", "")]
        self._environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

    def run(self, config: RunConfig) -> ExitStatus | None:
        """Run one cell to its end and return how it ended; None once a stop was asked for."""
        if self._stopping:
            return None
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
            self._running[directory] = worker
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
        """Have the first SIGINT ask the workers to stop, and the second end them."""

        def ask() -> None:
            self._stopping = True
            for directory in list(self._running):
                (directory / STOP_FILE).touch()
            print(" stopping after these rounds (Ctrl-C again to end at once)", flush=True)

        def end() -> None:
            for worker in list(self._running.values()):
                worker.kill()

        return on_interrupt(ask, end)


def main() -> ExitStatus:
    """Run the configuration that standard input holds."""
    die_with_parent()
    config = RunConfig.from_mapping(tomllib.loads(sys.stdin.read()))
    # The runner has removed earlier requests to stop: one that is there now is for this cell.
    return attempt(config, client_cpus=1, client_gpus=0.0, forget_stop=False)


if __name__ == "__main__":
    sys.exit(main())
