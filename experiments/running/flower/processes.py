"""The processes of one run on Flower's engine, and their end when nobody else can see to it.

The path of the run's folder is the value of `FLWR_HOME` in the environment of each of them, or of
those that started them, by which they are found again.

A runner that is killed by SIGKILL cannot clean up: its SuperLink, the simulation and Ray's workers
would train on for nobody, and hold the run's lock. So it starts this file as a program first. It
waits for the end of its standard input, a pipe that only the runner holds open, ends every process
of the run, and removes the folder. It imports nothing but the standard library, because it waits as
long as the run takes.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PATIENCE = 5.0  # seconds that killed processes get to be gone
_ENDED = "ZX"  # states of processes that have ended, and wait to be collected


@contextmanager
def guarded(home: Path) -> Iterator[None]:
    """Within the block, a process of its own sees to the run's processes if this one is killed."""
    guardian = subprocess.Popen(
        [sys.executable, "-I", __file__, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # neither Ctrl-C nor the end of a terminal ends it
    )
    try:
        yield
    finally:
        assert guardian.stdin is not None
        guardian.stdin.close()
        guardian.wait()


def end_processes(home: Path) -> None:
    """Kill every process that works in the folder, and wait until all are gone (Linux).

    A run that is killed loses nothing: what it has written is complete. One that has ended gains
    nothing by waiting either: Ray takes more than five seconds to leave by itself.
    """
    deadline = time.monotonic() + _PATIENCE
    while processes := processes_of(home):
        for pid in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return  # stuck in the kernel: nobody can do more
        time.sleep(0.05)


def processes_of(home: Path) -> list[int]:
    """Return the processes of the run, without this one; Linux tells, others no.

    They have the folder in their environment, or descend from one that has: Ray's workers write
    their titles over their environment.
    """
    mark = os.fsencode(f"FLWR_HOME={home}")
    found, children = list[int](), dict[int, list[int]]()
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or one that has just ended
            # pid (name) state parent ...; the name may hold spaces and brackets
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in _ENDED:
                continue
            children.setdefault(int(parent), []).append(int(path.name))
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    for pid in found:  # which grows on the way
        found += [child for child in children.get(pid, []) if child not in found]
    return [pid for pid in found if pid != os.getpid()]


def _wait_and_end(home: Path) -> None:
    sys.stdin.buffer.read()
    end_processes(home)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    _wait_and_end(Path(sys.argv[1]))
