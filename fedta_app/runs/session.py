"""A session: one stretch of a run, from its start or last checkpoint to its end or a stop."""

import datetime
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from fedta_app.config import RunConfig
from fedta_app.errors import RunError, disk_sentence
from fedta_app.files import unless_refused
from fedta_app.runs.checkpoint import (
    Checkpoint,
    check_format,
    newest_whole,
    save_checkpoint,
    set_aside_after,
)
from fedta_app.runs.command import to_continue, typed_command
from fedta_app.runs.curves_figure import save_curves
from fedta_app.runs.directory import RunDirectory, run_path
from fedta_app.runs.loggers import check_logger, open_loggers
from fedta_app.runs.memory import peaks, reset_peaks
from fedta_app.runs.metrics import Row, write_csv
from fedta_app.runs.provenance import code_facts, uncommitted, versions
from fedta_app.runs.records import METRICS, figures, stored_rows, stored_sessions, write_summary

INTERRUPTED = "interrupted"
State = Callable[[], dict[str, Any]]  # returns tensors and JSON values to be saved
_QUIET_SECONDS = 10.0  # a run that prints nothing for longer looks stuck


class RunSession:
    """Records, checkpoints and progress of one session, and the reasons to stop it.

    Parameters
    ----------
    config : RunConfig
    total_rows : int
        Rows of the finished run, from which the remaining time is estimated.
    facts : mapping
        What summary.json says of weights, data, partition and device. The entries under
        "identity" must be the same after a resume.
    notes : mapping, optional
        Further entries of summary.json, which may be added during the run.
    saved : callable, optional
        Called after every checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        total_rows: int,
        facts: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self._total_rows = total_rows
        self._saved = saved
        # Not copied, because entries are added during the run.
        self._notes = {} if notes is None else notes
        if config.resume:
            check_format(run_path(config) / "checkpoint")  # before anything is written
        check_logger(config)
        self.directory = RunDirectory(config)
        print(f"run directory: {self.directory.path}", flush=True)
        for warning in facts.get("warnings", ()):
            print(f"warning: {warning}", flush=True)
        try:
            self._open(facts)
        except BaseException:
            self.directory.close()
            raise

    def _open(self, facts: Mapping[str, Any]) -> None:
        """Load the last checkpoint, and start the records."""
        config = self.config
        self.checkpoint = newest_whole(self.directory.checkpoints) if config.resume else None
        self.rows: list[Row] = []
        self._history: list[dict[str, Any]] = []
        stored: dict[str, Any] = {}
        if self.checkpoint:
            stored = self.checkpoint.state
            self.rows = stored_rows(stored, self.checkpoint.step)
            self._history = stored_sessions(stored)
            self._warn_of_damage(self.checkpoint)
        self.code = code_facts(config)  # read now, because the checkout may change during the run
        self._facts = dict(facts)
        self._check_identity(stored.get("identity"))
        self.initial_sha256: str | None = stored.get("initial-weights-sha256")
        self._started = self._last_print = self._last_step = time.monotonic()
        self._began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._id = secrets.token_hex(4)
        self._first_step = len(self.rows)
        self._intervals: list[tuple[str, float]] = []  # phase and seconds of each row
        self._saved_step = len(self.rows) if self.checkpoint else -1
        first = self._history[0].get("id") if self._history else self._id
        self._loggers = open_loggers(config, self.directory.path, self.rows, str(first))
        write_csv(self.directory.path / METRICS, self.rows)
        self._write_summary("running", "", None)
        if changed := not typed_command() and uncommitted(self.code):
            print(f"warning: {changed}", flush=True)  # the command line says it for all its runs
        if self.rows:
            print(f"resumed after {self._where(self.rows[-1])}", flush=True)
            self._warn_of_another_processor()
        reset_peaks()

    def _warn_of_damage(self, checkpoint: Checkpoint) -> None:
        """Move damaged checkpoints after this one out of the way, and say so."""
        for aside in set_aside_after(self.directory.checkpoints, checkpoint.step):
            print(
                f"warning: a checkpoint was damaged and is now {aside}; the run goes on from the "
                "one before it, to the same bits",
                flush=True,
            )

    def _warn_of_another_processor(self) -> None:
        """Print a warning if another processor will give other bits than an unbroken run."""
        before = self._history[-1] if self._history else {}
        for key in ("precision", "kernels"):
            old, new = before.get(key), self._facts.get(key)
            if old and new and old != new:
                print(
                    f"warning: {key} was {old} until now and is {new} on this processor, which "
                    f"changes the last bits; set {key} to keep them",
                    flush=True,
                )

    def _check_identity(self, stored: Any) -> None:
        if stored is not None and stored != self._facts["identity"]:
            before = stored if isinstance(stored, dict) else {}
            changed = [
                key for key, value in self._facts["identity"].items() if before.get(key) != value
            ] or ["what it knows of its data and weights"]
            raise RunError(
                f"{self.directory.path} cannot be resumed: {' and '.join(changed)} changed since "
                "it was started; restore what was there, or choose another name"
            )

    def add(self, row: Row, state: State) -> None:
        """Record a round, with the memory it took; `state` is called if a checkpoint is due."""
        row = row.with_peaks(peaks())
        reset_peaks()
        now = time.monotonic()
        self._intervals.append((row.phase, now - self._last_step))
        self._last_step = now
        self.rows.append(row)
        write_csv(self.directory.path / METRICS, self.rows)
        self._loggers.add(row)
        if (len(self.rows) - 1) % self.config.checkpoint_every == 0:
            self._save(state)
        if row.val_accuracy is not None or now - self._last_print > _QUIET_SECONDS:
            self._last_print = now
            print(self._progress(row), flush=True)

    def stop_reason(self) -> str | None:
        """Return why the run should stop before the next round, or None."""
        if self.directory.stop_requested():
            return INTERRUPTED
        limit = self.config.max_minutes * 60
        if limit and time.monotonic() - self._started + self._expected_seconds() > limit:
            return f"max-minutes = {self.config.max_minutes:g} is used up"
        return None

    def finish(self, status: str, reason: str, state: State, sha256: str) -> None:
        """Save the last state and write the summary: "finished", or "stopped" with a reason."""
        self._save(state)
        with unless_refused():  # before the run is over: one that dies here draws again
            save_curves(self.directory.path / "curves.png", self.rows, self.config)
        self.directory.stop_requested()  # by Ctrl-C in the last round: it has been answered
        self._close(status, reason, sha256)
        where = self._where(self.rows[-1]) if self.rows else "nothing yet"
        if status == "finished":
            print(f"finished: {where}, {_figures(self.rows[-1])}", flush=True)
        else:
            print(f"stopped ({reason}) after {where}; {to_continue()}", flush=True)
        print(f"run directory: {self.directory.path}", flush=True)

    @contextmanager
    def recording_failure(self) -> Iterator[None]:
        """Record in summary.json the error that ends the block, and raise it again."""
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)  # Ctrl-C, twice
            ended = ("stopped", INTERRUPTED) if interrupted else ("failed", _reason(error))
            with suppress(OSError):  # the disk may be what failed
                self._close(*ended, None)
            raise

    def _close(self, status: str, reason: str, sha256: str | None) -> None:
        try:
            self._write_summary(status, reason, sha256)
        finally:
            self._loggers.close()
            self.directory.close()

    def _save(self, state: State) -> None:
        if self._saved_step == len(self.rows):
            return
        stored = {
            **state(),
            "config": self.config.to_mapping(),
            "rows": [asdict(row) for row in self.rows],
            "sessions": [*self._history, self._session()],
            "identity": self._facts["identity"],
            "initial-weights-sha256": self.initial_sha256,
        }
        save_checkpoint(self.directory.checkpoints, Checkpoint(len(self.rows), stored))
        self._saved_step = len(self.rows)
        self._saved()

    def _expected_seconds(self) -> float:
        """Return the median time of a row in the phase of the last one.

        The first, which warms up, counts only where there is no other.
        """
        last = self._intervals[-1][0] if self._intervals else ""
        found = [seconds for phase, seconds in self._intervals if phase == last]
        return statistics.median(found[1:] or found or [0.0])

    def _session(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "started": self._began,
            "device": self._facts["device"],
            "precision": self._facts.get("precision"),
            "kernels": self._facts.get("kernels"),
            "code": self.code,
            "command": typed_command(),
            "rows": [self._first_step, len(self.rows)],
            "seconds": round(time.monotonic() - self._started, 1),
        }

    def _write_summary(self, status: str, reason: str, sha256: str | None) -> None:
        summary = {
            "status": status,
            "reason": reason,
            "name": self.config.name,
            "seed": self.config.seed,
            **figures(self.rows),
            "initial-weights-sha256": self.initial_sha256,
            "final-weights-sha256": sha256,
            **self._facts,
            **self._notes,
            "code": self.code,
            "versions": versions(),
            "sessions": [*self._history, self._session()],
        }
        write_summary(self.directory.path, summary)

    def _where(self, row: Row) -> str:
        return f"{row.phase} round {row.round}"

    def _progress(self, row: Row) -> str:
        parts = [f"{self._where(row):>18}", _figures(row)]
        if row.phase == "train":  # rounds of other phases say nothing of how long these take
            pace = self._expected_seconds()
            left = datetime.timedelta(seconds=round((self._total_rows - len(self.rows)) * pace))
            parts.append(f"{pace:.2f} s/round, {left} left")
        return " | ".join(part for part in parts if part)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return disk_sentence(error)
    return f"{type(error).__name__}: {error}"


def _figures(row: Row) -> str:
    parts = []
    if row.train_loss is not None:
        parts.append(f"train loss {row.train_loss:.3f}")
    if row.val_accuracy is not None:
        parts.append(f"val {row.val_accuracy:.1%}")
    if row.test_accuracy is not None:
        parts.append(f"test {row.test_accuracy:.1%}")
    if row.clients_failed:
        parts.append(f"{row.clients_failed} clients failed")
    return ", ".join(parts)
