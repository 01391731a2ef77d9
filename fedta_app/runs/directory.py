"""The directory of a run: its lock, and the check whether an earlier run can be continued."""

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from fedta_app.config import RunConfig, difference, to_toml
from fedta_app.errors import ConfigError, RunError
from fedta_app.files import as_folder, expanded, read_toml, write_atomically

STOP_FILE = "stop"
LOCK_FILE = ".lock"
DIVERGED = "training diverged"  # in the error, by which tuning recognises it
_LOCK_PATIENCE = 15.0  # seconds: a process that was just killed may still be ending
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # a file system without locks


def results_path(config: RunConfig) -> Path:
    """Return the absolute folder that holds the directories of all runs."""
    return expanded(config.results_dir, f"results-dir = {config.results_dir!r}")


def run_path(config: RunConfig) -> Path:
    """Return the absolute directory of a run: <results-dir>/<name>/seed<seed>."""
    return results_path(config) / config.name / f"seed{config.seed}"


def cache_path(config: RunConfig) -> Path | None:
    """Return the absolute folder of the cache; None without one, or for a user without a home.

    Raises
    ------
    ConfigError
        When there is something else in its place.
    """
    if not config.cache_dir:
        return None
    try:
        return as_folder(config.cache_dir, f"cache-dir = {config.cache_dir!r}")
    except ConfigError:
        if config.cache_dir == RunConfig().cache_dir and "HOME" not in os.environ:
            return None  # who did not ask for a cache does without
        raise


def check_resumable(config: RunConfig) -> None:
    """Refuse to continue a run of another configuration, and list the differences.

    Raises
    ------
    ConfigError
        When the directory holds a run with other values of the keys that decide a result.
    """
    path = run_path(config)
    stored = path / "config.toml"
    if not config.resume or not stored.exists():
        return
    # A key that did not exist when the run was started has its default, which changes nothing.
    before = {**RunConfig().to_mapping(), **read_toml(stored)}
    changed = difference(before, config.to_mapping())
    if changed:
        raise ConfigError(
            f"{path} holds a run with another configuration ({'; '.join(changed)}): "
            "restore the values, choose another name (--name NAME, or the key name), or set "
            "resume = false to start over"
        )


def check_writable(config: RunConfig) -> None:
    """Create the run directory, or raise ConfigError if it cannot be written to."""
    path = run_path(config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / ".writable", "")
        (path / ".writable").unlink()
    except OSError as error:
        raise ConfigError(
            f"results-dir = {config.results_dir!r} is not allowed: {path} cannot be written to "
            f"({error.strerror})"
        ) from error


class RunDirectory:
    """The directory of a run, locked by one process at a time.

    With `resume = false`, an earlier run in it is moved aside, never deleted.
    """

    def __init__(self, config: RunConfig) -> None:
        check_writable(config)
        check_resumable(config)
        self.path = run_path(config)
        self._lock = self._acquire()
        if not config.resume and any(
            (self.path / n).exists() for n in ("config.toml", "checkpoint")
        ):
            self._move_aside()
        write_atomically(self.path / "config.toml", to_toml(config))

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoint"

    def stop_requested(self) -> bool:
        """Return whether there was a file named `stop`, which Ctrl-C creates, and remove it."""
        try:
            (self.path / STOP_FILE).unlink()
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    def _acquire(self) -> FileLock:
        """Lock the directory; the operating system releases the lock when this process ends."""
        lock = FileLock(
            self.path / LOCK_FILE,
            timeout=_LOCK_PATIENCE,
            thread_local=False,
            # A soft lock, which is a marker file, would outlive a process that is killed.
            fallback_to_soft=False,
        )
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"{self.path} is in use by another process that runs the same seed of the same "
                "name: wait for it, or choose another name"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return lock

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        aside.mkdir()
        # config.toml goes last: if this is interrupted, the rest is still known as the old run.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.toml"):
            if entry.name not in (LOCK_FILE, STOP_FILE):
                entry.rename(aside / entry.name)
        print(f"resume = false: the earlier run is kept in {aside}", flush=True)
