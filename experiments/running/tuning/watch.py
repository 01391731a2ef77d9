"""What a study sees of a trial that is running."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import optuna

from fedta_app.config import RunConfig
from fedta_app.runs.directory import STOP_FILE, run_path
from fedta_app.runs.records import read_rows

_POLL_SECONDS = 0.2


class Watch:
    """Tells the study of a run's measurements while it works, and stops one that falls behind."""

    def __init__(self, trial: optuna.Trial, config: RunConfig) -> None:
        self.pruned = False
        self._trial = trial
        self._folder = run_path(config)
        self._seen: set[int] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look at the run every now and then until the block ends."""
        done = threading.Event()

        def watch() -> None:
            # A study that cannot be written to ends this; `look` meets that again after the block.
            with suppress(Exception):
                while not done.wait(_POLL_SECONDS):
                    self.look()
                    if not self.pruned and self._trial.should_prune():
                        self.pruned = True
                        (self._folder / STOP_FILE).touch()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def look(self) -> None:
        """Report the measurements that are new."""
        for row in read_rows(self._folder):
            number = int(row["round"])
            if row["phase"] == "train" and row["val_accuracy"] and number not in self._seen:
                self._trial.report(float(row["val_accuracy"]), number)
                self._seen.add(number)
