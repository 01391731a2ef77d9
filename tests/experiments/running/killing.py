"""`kill -9` for a command and everything it started, at once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill the runner, its SuperLink, the simulation and Ray's processes, without a moment between.

    What the runner alone leaves behind ends too, but only after a moment.
    """
    tree = descendants(process.pid)
    for pid in [process.pid, *tree]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def kill_after(
    command: Sequence[str], folder: Path, rounds_done: Callable[[], int], server_round: int
) -> None:
    """Start a command in a folder, and kill it with all that it started once a round is done."""
    process = subprocess.Popen(
        command, cwd=folder, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while rounds_done() < server_round:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    kill_tree(process)


def runs(pid: int) -> bool:
    """Return whether a process works: not one that has ended, and that nobody has waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def descendants(root: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state parent ...; the name may hold spaces and brackets
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, frontier = [], [root]
    while frontier:
        parent = frontier.pop()
        children = [pid for pid, owner in parents.items() if owner == parent]
        found += children
        frontier += children
    return found
