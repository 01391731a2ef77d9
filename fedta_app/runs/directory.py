"""The directory of a run: its lock, and the check whether an earlier run can be continued."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedta_app.config import RunConfig, difference, to_toml
from fedta_app.errors import NO_RESUME, ConfigError, RunError
from fedta_app.files import as_folder, expanded, read_toml, remove_temporary, write_atomically
from fedta_app.runs.checkpoint import kept_values

CONFIG = "config.toml"
STOP_FILE = "stop"
LOCK_FILE = ".lock"
START_LOCK = ".start"  # held by a command from before the run until it has read how it ended
# In errors, by which tuning recognises the one, and the runner the other.
DIVERGED = "training diverged"
PROCESS_DIED = "the process of a client died"
_LOCK_PATIENCE = 15.0  # seconds: a process that was just killed may still be ending
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # a file system without locks


class InUseError(RunError):
    """Another process runs what is in this directory."""


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
    if not config.resume or (started := started_with(path)) is None:
        return
    # A key that did not exist when the run was started has its default, which changes nothing.
    changed = difference({**RunConfig().to_mapping(), **started}, config.to_mapping())
    if changed:
        raise ConfigError(
            f"{path} holds a run with another configuration ({'; '.join(changed)}): "
            "restore the values, choose another name (--name NAME, or the key name), or start the "
            f"run over ({NO_RESUME})"
        )


def started_with(path: Path) -> dict[str, Any] | None:
    """Return the keys that the run in a directory was started with; None if it holds no run.

    A checkpoint holds them, under its hash. config.toml alone does before the first checkpoint,
    and where an earlier release wrote the checkpoint.

    Raises
    ------
    ConfigError
        When the checkpoint does not hold them, and config.toml is missing or cannot be read.
    """
    states = kept_values(path / "checkpoint")
    if states and isinstance(held := states[-1].get("config"), dict):
        return held
    if states and not (path / CONFIG).exists():
        raise ConfigError(
            f"{path / CONFIG} is missing, and the checkpoint, of an earlier release, does not say "
            f"how the run was started: put the file back, or start the run over ({NO_RESUME})"
        )
    return read_toml(path / CONFIG) if (path / CONFIG).exists() else None


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


def start_over(config: RunConfig) -> None:
    """Move an earlier run out of a run directory; it is never deleted.

    Raises
    ------
    InUseError
        When another process runs it.
    """
    path = run_path(config)
    if _holds_run(path):
        with started_once(path):
            lock = _acquire(path / LOCK_FILE)
            try:
                _move_aside(path)
            finally:
                lock.release()


class RunDirectory:
    """The directory of a run, locked by one process at a time.

    With `resume = false`, an earlier run in it is moved aside, never deleted.
    """

    def __init__(self, config: RunConfig) -> None:
        check_writable(config)
        check_resumable(config)
        self.path = run_path(config)
        self._lock = _acquire(self.path / LOCK_FILE)
        try:
            if not config.resume and _holds_run(self.path):
                _move_aside(self.path)
            remove_temporary(*self._folders())
            write_atomically(self.path / CONFIG, to_toml(config))
        except BaseException:
            self._lock.release()
            raise

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

    def _folders(self) -> list[Path]:
        """Return the folders that a run writes files into."""
        own = [self.path / name for name in ("checkpoint", "blobs", "model")]
        clients = self.path / "clients"
        return [self.path, *own, *(clients.iterdir() if clients.is_dir() else ())]


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in (CONFIG, "checkpoint"))


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    aside.mkdir()
    # config.toml goes last: if this is interrupted, the rest is still known as the old run.
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == CONFIG):
        if entry.name not in (LOCK_FILE, START_LOCK, STOP_FILE):
            entry.rename(aside / entry.name)
    print(f"resume = false: the earlier run is kept in {aside}", flush=True)


@contextmanager
def started_once(path: Path) -> Iterator[None]:
    """Within the block, no other command starts or ends the run in a directory.

    A second start would open the records anew before the first has read how its run ended.

    Raises
    ------
    InUseError
        When another command holds it for longer than a killed process takes to end.
    """
    lock = _acquire(path / START_LOCK)
    try:
        yield
    finally:
        lock.release()


def _acquire(path: Path) -> FileLock:
    """Lock a file; the operating system releases the lock when this process ends."""
    lock = FileLock(
        path,
        timeout=_LOCK_PATIENCE,
        thread_local=False,
        # A soft lock, which is a marker file, would outlive a process that is killed.
        fallback_to_soft=False,
    )
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError(
            f"{path.parent} is in use by another process that runs the same seed of the same "
            "name: wait for it, or choose another name"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise RunError(f"{path} cannot be locked: {error.strerror}") from error
    return lock
