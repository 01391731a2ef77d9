"""`kill -9` for a command and everything it started, at once."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path


def kill_tree(process: "subprocess.Popen[bytes]") -> None:
    """Kill the runner, its SuperLink, the simulation and Ray's processes.

    Killing the runner alone lets the simulation work on for a moment, long enough to finish.
    """
    tree = _descendants(process.pid)
    for pid in [process.pid, *tree]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(root: int) -> list[int]:
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
