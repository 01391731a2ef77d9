"""The folder of one run for what Flower and Ray write; it goes when the run ends."""

import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.running.flower.processes import end_processes, guarded
from experiments.running.signals import undisturbed
from fedta_app.errors import RunError
from fedta_app.files import remove_tree

_PREFIX = "fedta-"
_RANDOM = 8  # letters that tempfile adds
_OWNER = "owner"  # file that names the process that made the folder
# Ray's sockets lie below the folder, and systems limit the length of their paths.
_SOCKET = "/ray/session_2026-11-25_21-58-16_146802_4194304/sockets/plasma_store"
_LONGEST = (103 if sys.platform == "darwin" else 107) - len(_SOCKET) - len(_PREFIX) - _RANDOM - 1
_SHORT = "/tmp"


@contextmanager
def run_home() -> Iterator[Path]:
    """Make the folder of a run; at the end, end what still works in it, and remove it.

    It lies in the temporary folder, or in /tmp where that path is too long.

    Raises
    ------
    RunError
        When no folder can be made.
    """
    remove_stale_homes()
    home = _make()
    with guarded(home):
        try:
            yield home
        finally:
            with undisturbed():
                end_processes(home)
                remove_tree(home)


def _make() -> Path:
    reasons = []
    for folder in _folders():
        if os.name == "posix" and len(os.fsencode(folder)) > _LONGEST:
            reasons.append(f"the path of {folder} is too long for Ray's sockets")
            continue
        try:
            home = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
            (home / _OWNER).write_text(_owner(), encoding="utf-8")
        except OSError as error:
            reasons.append(f"{folder} cannot be written to ({error.strerror})")
        else:
            return home
    raise RunError(
        f"Flower's engine needs a temporary folder: {', and '.join(reasons)}; set TMPDIR to a "
        f"folder that you can write to, with a path of at most {_LONGEST} bytes"
    )


def _folders() -> list[str]:
    """Return the folders in which a run's may lie, the preferred one first."""
    try:
        found = tempfile.gettempdir()
    except FileNotFoundError:  # it tried some, and could write to none
        found = _SHORT
    return [found, _SHORT] if os.name == "posix" and found != _SHORT else [found]


def _owner(pid: int | None = None) -> str:
    """Return what tells this machine's processes apart: machines may share a temporary folder."""
    return f"{platform.node()} {os.getpid() if pid is None else pid}"


def remove_stale_homes() -> None:
    """Remove the folders that killed runs of this user, on this machine, left behind."""
    if os.name != "posix":
        return  # elsewhere neither owners of files nor signal 0 mean what is asked here
    for folder in _folders():
        for home in Path(folder).glob(_PREFIX + "?" * _RANDOM):
            if _is_own_folder(home) and _is_stale(home):
                remove_tree(home)


def _is_stale(home: Path) -> bool:
    """Return whether a process of this machine made the folder, and has ended."""
    try:
        owner = (home / _OWNER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    pid = owner.rpartition(" ")[2]
    return pid.isdecimal() and owner == _owner(int(pid)) and not _alive(int(pid))


def _is_own_folder(path: Path) -> bool:
    """Return whether this user made the folder; anybody may put anything into a shared one."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's, or no number of a process
    return True
