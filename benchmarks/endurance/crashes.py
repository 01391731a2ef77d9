"""Death at each single operation on a file: the same command again ends at the same weights.

    python -m benchmarks.endurance.crashes [--every 1] [--json FILE]

A small run of SCAFFOLD with a ridge head, a calibrated mask and measured interference is played
once, and each of its operations on files is noted: opened to be written, flushed, renamed, removed,
a folder made or removed. Then it is played again for each of them, in a process that ends there,
as by `kill -9`; at each flush also with a file of which only the first half was written. Each time
the same command has to go on to the weights, the rows and the files of the unbroken run, and leave
none half written. Linux alone has what this needs.
"""

import argparse
import collections
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.endurance.checkpoints import End, end_of, start
from benchmarks.harness.report import facts, write
from experiments.exit_status import ExitStatus

_DIED = 9
# Python's audit events, and what the operation is called here.
_EVENTS = {
    "open": "write", "os.rename": "rename", "os.remove": "remove", "os.mkdir": "make folder",
    "os.rmdir": "remove folder",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR


class Watch:
    """Notes the operations of this process on files below a folder, and ends it at one of them.

    Parameters
    ----------
    end_at : int
        The number of the operation before which the process ends; 0 for none.
    torn : bool
        Whether the file that would be flushed then loses its second half.
    """

    def __init__(self, folder: Path, log: Path, end_at: int, torn: bool) -> None:
        self._folder, self._end_at, self._torn = str(folder), end_at, torn
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT)
        self._count = 0

    def begin(self) -> None:
        """Watch from now on, to the end of the process."""
        self._fsync, os.fsync = os.fsync, self._flush  # type: ignore[assignment]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        name = _EVENTS.get(event)
        if name is None or (name == "write" and not (arguments[2] or 0) & _WRITES):
            return
        path = arguments[0]
        # In a folder that is removed with all it holds, names are relative to its descriptor.
        within = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if within or (isinstance(path, str | bytes) and os.fsdecode(path).startswith(self._folder)):
            self._note(name)

    def _flush(self, descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._folder):
            torn = self._torn and self._count + 1 == self._end_at
            if torn and stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            self._note("flush")
        self._fsync(descriptor)

    def _note(self, name: str) -> None:
        self._count += 1
        if self._count == self._end_at:
            os._exit(_DIED)
        os.write(self._log, f"{name}\n".encode())


def play(results: Path, log: Path, end_at: int = 0, torn: bool = False) -> int:
    """Give the command in a child process, which is watched; return the status that it ended with.

    A copy of this process, which has imported all: a new one would take seconds to begin.
    """
    child = os.fork()
    if child == 0:
        _end_with(results, log, end_at, torn)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_with(results: Path, log: Path, end_at: int, torn: bool) -> NoReturn:
    status = 1
    try:
        Watch(results, log, end_at, torn).begin()
        status = int(start(results)[0])
    finally:
        os._exit(status)


def fault(results: Path, expected: End) -> str:
    """Go on with a run that died, and return what is wrong with its end, if anything."""
    status, said = start(results)
    run = results / "run/seed0"
    if status != ExitStatus.FINISHED or "Traceback" in said:
        return f"it ended with {status.name}: {said[-2000:]}"
    if end_of(run) != expected:
        return f"it ended at other weights, rows or files: {end_of(run)[2]}"
    left = [path.name for path in run.rglob(".*.tmp")]
    return f"it left {left[0]}" if left else ""


def main(arguments: list[str] | None = None) -> int:
    """End runs at their operations, print what became of them; return 1 if one was not right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="of the operations, one in this many")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    tried: collections.Counter[str] = collections.Counter()
    faults = []
    with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
        whole, log = Path(folder) / "whole", Path(folder) / "operations"
        if status := play(whole, log):
            raise RuntimeError(f"the run that nobody ends ended with {status}")
        expected, operations = end_of(whole / "run/seed0"), log.read_text().split("\n")[:-1]
        points = [
            (number, name, torn)
            for number, name in enumerate(operations, start=1)
            for torn in ((False, True) if name == "flush" else (False,))
        ][:: asked.every]
        for done, (number, name, torn) in enumerate(points, start=1):
            results = Path(folder) / f"{number}-{torn}"
            status = play(results, Path(os.devnull), number, torn)
            what = f"{name}, half written" if torn else name
            wrong = f"it did not die, but ended with {status}" if status != _DIED else ""
            tried[what] += 1
            if wrong := wrong or fault(results, expected):
                faults.append({"operation": number, "what": what, "wrong": wrong})
                print(f"{number} ({what}): {wrong}", flush=True)
            if done % 50 == 0 or done == len(points):
                print(f"{done} of {len(points)}, {len(faults)} faults", flush=True)
    print(", ".join(f"{count} x {what}" for what, count in sorted(tried.items())))
    result = {"operations": len(operations), "tried": dict(sorted(tried.items()))}
    write(asked.json, {**facts(), **result, "faults": faults})
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
