"""Run a command in a process of its own, and see how much memory it and its children take."""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.running.signals import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
_INTERVAL = 0.1  # seconds between two looks at the memory
_PATIENCE = 900.0  # seconds


class BenchError(RuntimeError):
    """A contender that failed; the message says how."""


@dataclass(frozen=True)
class Memory:
    """MiB of a process tree: what its processes share is counted once.

    Files that are mapped, libraries above all, are counted by the process that has most of them:
    proportional sizes would depend on who else on the machine has loaded torch.

    Attributes
    ----------
    total : float
        Anonymous memory of all processes, mapped files, and shared memory.
    shared : float
        What of it is shared memory: /dev/shm, where Ray keeps objects, and anonymous files.
    server : float
        The process where Flower's simulation engine runs the ServerApp; without it, the largest.
    """

    total: float = 0.0
    shared: float = 0.0
    server: float = 0.0

    def peak(self, other: "Memory") -> "Memory":
        """Return the larger of each."""
        return Memory(
            max(self.total, other.total),
            max(self.shared, other.shared),
            max(self.server, other.server),
        )


def run_apart(
    command: Sequence[str], *, watch: bool = False, patience: float = _PATIENCE
) -> Memory:
    """Run a command from the repository's root in a fresh process; CPU only.

    Parameters
    ----------
    watch : bool
        Sample the memory of the process and all its children, ten times a second. It costs time:
        do not do both, watch and take times.
    patience : float
        Seconds after which the command has failed.

    Returns
    -------
    Memory
        Its peak; zeros unless watched.

    Raises
    ------
    BenchError
        When the command fails; with its last lines.
    """
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_bind_to_parent if sys.platform == "linux" else None,
    )
    watcher = _Watcher(process.pid) if watch and sys.platform == "linux" else None
    try:
        output, _ = process.communicate(timeout=None if math.isinf(patience) else patience)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    finally:
        peak = watcher.stop() if watcher else Memory()
    if process.returncode != 0:
        tail = " | ".join(output.strip().splitlines()[-3:])
        raise BenchError(f"{' '.join(command[-3:])} ended with {process.returncode}: {tail}")
    return peak


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: together with the contender that runs."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def _bind_to_parent() -> None:
    """End with this process, and keep grandchildren in the tree whose parents end before them."""
    pr_set_child_subreaper = 36
    die_with_parent()
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


class _Watcher:
    """Samples a process tree from a thread until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = Memory()
        self._simulation = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> Memory:
        """Return the peak."""
        self._done.set()
        self._thread.join()
        return replace(self._peak, server=self._simulation or self._peak.server)

    def _watch(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._peak = self._peak.peak(self._look())

    def _look(self) -> Memory:
        anonymous = mapped = libraries = largest = 0.0
        for pid in tree(self._pid):
            sizes = {**_sizes(pid, "status"), **_sizes(pid, "smaps_rollup")}
            anonymous += sizes.get("Pss_Anon", 0.0)
            mapped += sizes.get("Pss_Shmem", 0.0)
            libraries = max(libraries, sizes.get("RssFile", 0.0))
            own = sizes.get("Pss_Anon", 0.0) + sizes.get("RssFile", 0.0)
            largest = max(largest, own)
            if _is_simulation(pid):
                self._simulation = max(self._simulation, own)
        return Memory(anonymous + libraries + mapped, mapped, largest)


def tree(root: int) -> Iterable[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # behind the name, which may hold spaces and brackets: state and parent
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def _sizes(pid: int, file: str) -> dict[str, float]:
    """Return the sizes in a file of /proc in MiB, by their names; none if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) / 1024 for name, value, _ in fields}


def _is_simulation(pid: int) -> bool:
    try:
        return b"flwr-simulation" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
