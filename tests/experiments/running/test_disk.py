"""What a disk does to a run: it ends at the same bits, or in one sentence and a non-zero status.

A small run is made once, and stopped once; each case damages a copy, and gives the command again.
"""

import csv
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from benchmarks.endurance.checkpoints import change_state
from experiments import load_run
from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from fedta_app import files
from fedta_app.errors import RunError
from fedta_app.runs import directory
from fedta_app.runs.metrics import COSTS
from fedta_app.runs.records import disagreement
from fedta_app.runs.session import INTERRUPTED, RunSession

KEYS = {
    "num-clients": 3, "num-classes-per-client": 4, "fraction-train": 1.0, "num-server-rounds": 3,
    "local-steps": 1, "eval-every": 1, "eval-size": 20, "calibration-rounds": 1, "threads": 1,
    "calibration-examples": 4, "strategy": "'scaffold'", "interference-every": 3,
    "head": "'ridge'", "name": "'run'", "cache-dir": "''",
}  # fmt: skip
STOPPED_AFTER = 2  # rounds of training, of 3
ROOT = Path(__file__).resolve().parents[3]
slow = pytest.mark.slow


def command(results: Path, **changes: Any) -> list[str]:
    values = {**KEYS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    sets = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    where = ["--engine", "in-process", "--results-dir", str(results)]
    return ["run", "demo/masked", *where, *sets]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Save empty figures, do not wait for locks, and do not collect garbage after each run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda *_: 0)
        patch.setattr(Figure, "savefig", lambda figure, stream, **_: None)
        patch.setattr(directory, "_LOCK_PATIENCE", 0.1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """The directory of a run that finished."""
    results = tmp_path_factory.mktemp("whole")
    assert main(command(results)) == ExitStatus.FINISHED
    return results / "run/seed0"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, quick: None) -> Path:
    """The directory of the same run, stopped before its last round."""
    results = tmp_path_factory.mktemp("half")

    def stop(session: RunSession) -> str | None:
        last = session.rows[-1] if session.rows else None
        due = last is not None and (last.phase, last.round) == ("train", STOPPED_AFTER)
        return INTERRUPTED if due else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunSession, "stop_reason", stop)
        assert main(command(results)) == ExitStatus.INTERRUPTED
    return results / "run/seed0"


class Case:
    """A copy of a run directory, and what becomes of it."""

    def __init__(
        self, source: Path, results: Path, whole: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.results, self.path = results, results / "run/seed0"
        shutil.copytree(source, self.path)
        self._whole, self._capsys = whole, capsys
        self.output = ""

    def find(self, pattern: str) -> Path:
        """Return the last path that a pattern finds, with `now` for the memory of client 2."""
        if pattern.endswith("/now"):
            state = json.loads(self.find("checkpoint/step-*/state.json").read_text())["state"]
            return self.path / "clients/2" / state["parts"]["algorithm"]["memories"]["2"]
        return next(iter(sorted(self.path.glob(pattern))[::-1]), self.path / pattern)

    def start(self, **changes: Any) -> str:
        """Give the command again; return what the run was refused with, empty if it finished."""
        self._capsys.readouterr()
        if said := self.refusal(command(self.results, **changes)):
            return said
        assert final_weights(self.path) == final_weights(self._whole)
        assert figures(self.path) == figures(self._whole)
        assert not list(self.path.rglob(".*.tmp"))
        return ""

    def refusal(self, words: list[str]) -> str:
        """Give a command; return the sentence that refused it, empty if it did what it was for."""
        self._capsys.readouterr()
        status = main(words)
        said = self._capsys.readouterr()
        self.output = said.out + said.err
        assert "Traceback" not in self.output, self.output
        if status == ExitStatus.FINISHED:
            return ""
        assert status in (ExitStatus.FAILED, ExitStatus.REFUSED), self.output
        lines = self.output.splitlines()
        sentences = [line for line in lines if line.startswith(("failed: ", "error: "))]
        assert sentences, self.output
        return sentences[0]


@pytest.fixture
def stopped(half: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(half, tmp_path, whole, capsys)


@pytest.fixture
def finished(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    return Case(whole, tmp_path, whole, capsys)


def final_weights(path: Path) -> str:
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "finished"
    return str(summary["final-weights-sha256"])


def figures(path: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without what differs when a run is repeated."""
    with (path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{name: row[name] for name in row if name not in COSTS} for row in rows]


# --- faults of one file, before the run is started again


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"0")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def miss(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def close(path: Path) -> None:
    path.chmod(0)


def turn_into_a_folder(path: Path) -> None:
    miss(path)
    (path / "file").mkdir(parents=True)


def turn_into_a_file(path: Path) -> None:
    miss(path)
    path.write_text("not a folder")


FAULTS = {
    "cut": cut, "flipped": flip, "missing": miss, "unreadable": close,
    "a folder": turn_into_a_folder, "a file": turn_into_a_file,
}  # fmt: skip
ALL = frozenset(FAULTS) - {"a file"}
NOWHERE: frozenset[str] = frozenset()
FOLDER = frozenset({"missing", "unreadable", "a file"})

# What is damaged in a run that was stopped, by which faults, and which of these end it with a
# sentence; after the others it finishes with the weights of an unbroken run.
STOPPED: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "config.toml": (ALL, frozenset({"a folder"})),
    "metrics.csv": (ALL, frozenset({"a folder"})),
    "summary.json": (ALL, frozenset({"a folder"})),
    ".lock": (ALL, frozenset({"unreadable", "a folder"})),
    ".start": (ALL, frozenset({"unreadable", "a folder"})),
    "checkpoint": (FOLDER, frozenset({"unreadable", "a file"})),
    "checkpoint/step-*": (FOLDER, NOWHERE),
    "checkpoint/step-*/state.json": (ALL, NOWHERE),
    "checkpoint/step-*/weights.safetensors": (ALL, NOWHERE),
    "blobs": (FOLDER, FOLDER),
    "blobs/*": (ALL, ALL),
    "clients": (FOLDER, FOLDER),
    "clients/*": (FOLDER, FOLDER),
    "clients/2/now": (ALL, ALL),
    "model": (FOLDER, frozenset({"unreadable", "a file"})),
    "model/best.safetensors": (ALL, frozenset({"a folder"})),
    "tensorboard": (FOLDER, NOWHERE),
    "tensorboard/*": (ALL, NOWHERE),
    "curves.png": (ALL, NOWHERE),
    "partition.png": (ALL, NOWHERE),
    "mask_density.png": (ALL, NOWHERE),
    "interference.csv": (ALL, frozenset({"a folder"})),
}
QUICK = {
    ("config.toml", "missing"), ("config.toml", "flipped"), ("metrics.csv", "cut"),
    ("metrics.csv", "a folder"), ("summary.json", "flipped"), (".lock", "a folder"),
    ("checkpoint", "a file"), ("checkpoint/step-*", "missing"),
    ("checkpoint/step-*/state.json", "flipped"), ("blobs/*", "flipped"),
    ("checkpoint/step-*/weights.safetensors", "cut"), ("clients/2/now", "missing"),
    ("model/best.safetensors", "flipped"), ("tensorboard/*", "cut"), ("curves.png", "a folder"),
    ("interference.csv", "missing"),
}  # fmt: skip


@contextmanager
def without_privileges() -> Iterator[None]:
    """Within the block, permissions count for root too, which overrides them otherwise."""
    if os.geteuid():
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read everything")
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert not libc.capget(header, before)
    dropped = (ctypes.c_uint32 * 6)(*before)
    dropped[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert not libc.capset(header, dropped)
    try:
        yield
    finally:
        assert not libc.capset(header, before)


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        pytest.param(place, fault, marks=() if (place, fault) in QUICK else slow)
        for place, (faults, _) in STOPPED.items()
        for fault in sorted(faults)
    ],
)
def test_a_stopped_run_goes_on_to_the_same_bits_or_says_why_not(
    stopped: Case, place: str, fault: str
) -> None:
    damaged = stopped.find(place)
    FAULTS[fault](damaged)
    try:
        with without_privileges():
            said = stopped.start()
    finally:
        if damaged.exists():
            damaged.chmod(0o755)
    assert bool(said) == (fault in STOPPED[place][1]), said


@pytest.mark.parametrize("place", ["config.toml", "checkpoint/step-*/state.json"])
def test_another_configuration_is_refused_without_config_toml(stopped: Case, place: str) -> None:
    """The checkpoint knows how the run was started, under its hash; so does the one before it."""
    miss(stopped.path / "config.toml")
    if place != "config.toml":
        flip(stopped.find(place))
    assert "holds a run with another configuration (lr: " in stopped.start(lr=0.5)


def test_a_checkpoint_of_an_earlier_release_needs_config_toml(stopped: Case) -> None:
    for path in stopped.path.glob("checkpoint/step-*/state.json"):
        change_state(path, lambda state: state.pop("config"))
    text = (stopped.path / "config.toml").read_text()
    miss(stopped.path / "config.toml")
    assert "config.toml is missing, and the checkpoint" in stopped.start()
    (stopped.path / "config.toml").write_text(text)
    assert "another configuration (lr: " in stopped.start(lr=0.5)
    assert not stopped.start()


def test_a_checkpoint_that_names_no_memories_is_a_sentence(stopped: Case) -> None:
    """Also the one before the last, whose memories are kept in case the last is damaged."""
    older, _ = sorted(stopped.path.glob("checkpoint/step-*/state.json"))
    change_state(older, lambda state: state["parts"]["algorithm"]["memories"].update({"1": -1}))
    assert "which memories it needs (TypeError: -1 is no str of digests)" in stopped.start()


# --- faults while the run is under way


def refuse_writes(patch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Let the disk refuse what is written to files of a name, as when it is full."""
    flush = files._flush_to_disk

    def refuse(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/run/seed0/")[2]
        if place in name:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    patch.setattr(files, "_flush_to_disk", refuse)


WRITTEN = (
    "", "config.toml", "metrics.csv", "summary.json", "weights.safetensors", "state.json",
    "clients/2", "last.safetensors", "curves.png", "partition.png",
)  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files are found in /proc")
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=() if place in ("", "clients/2", "state.json") else slow)
        for place in WRITTEN
    ],
)
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(
    stopped: Case, place: str
) -> None:
    (stopped.path / "partition.png").unlink(missing_ok=True)  # it is drawn once only
    with pytest.MonkeyPatch.context() as patch:
        refuse_writes(patch, place, errno.ENOSPC)
        said = stopped.start()
    if place.endswith(".png"):
        assert not said and "No space left on device; it is left out" in stopped.output
        return
    assert "No space left on device" in said and place in said
    assert not list(stopped.path.rglob(".*.tmp"))  # they would keep it full
    assert not stopped.start()


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files are found in /proc")
@pytest.mark.parametrize(
    ("number", "refused"), [(errno.EIO, True), pytest.param(errno.EINVAL, False, marks=slow)]
)
def test_a_disk_that_does_not_flush(stopped: Case, number: int, refused: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        patch.setattr(os, "fsync", fsync)
        assert bool(stopped.start()) == refused
    assert not stopped.start()


# What vanishes or is closed before the last round, and whether that ends the run.
UNDERWAY: dict[str, bool] = {
    "": True, "checkpoint": False, "metrics.csv": False, "summary.json": False,
    "config.toml": False, "blobs": True, "clients": True, "model": False, "tensorboard": False,
    ".lock": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "place",
    [pytest.param(place, marks=() if place in ("", "clients") else slow) for place in UNDERWAY],
)
def test_what_vanishes_during_the_run(
    stopped: Case, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, lambda: miss(stopped.path / place))
    said = stopped.start()
    assert bool(said) == UNDERWAY[place], said


def once(patch: pytest.MonkeyPatch, fault: Callable[[], None]) -> None:
    """Let something happen before the next round."""
    ask = RunSession.stop_reason

    def before(session: RunSession) -> str | None:
        patch.setattr(RunSession, "stop_reason", ask)
        fault()
        return ask(session)

    patch.setattr(RunSession, "stop_reason", before)


@pytest.mark.parametrize("when", ["before", pytest.param("during", marks=slow)])
def test_a_folder_that_may_only_be_read_is_a_sentence(
    stopped: Case, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shut() -> None:
        stopped.path.chmod(0o500)

    shut() if when == "before" else once(monkeypatch, shut)
    with without_privileges():
        assert "Permission denied" in stopped.start()
    stopped.path.chmod(0o700)
    assert not stopped.start()


def test_a_clock_that_was_set_back_changes_nothing(
    stopped: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e8)
    assert not stopped.start()
    events = sorted(path.name for path in (stopped.path / "tensorboard").iterdir())
    assert len(events) == 2  # read in this order: the new ones after those that they replace
    assert "100000000" not in events[0]


def test_what_a_crash_left_behind_is_removed(stopped: Case) -> None:
    for place in ("", "model", "blobs", "clients/2"):
        (stopped.path / place / ".file.123.tmp").write_text("half a fi")
    (stopped.path / "checkpoint/.step-000099.tmp").mkdir()
    assert not stopped.start()  # which looks for them


def test_two_starts_at_once(stopped: Case) -> None:
    with directory.started_once(stopped.path):
        assert main(command(stopped.results)) == ExitStatus.STOPPED  # left alone
    assert not stopped.start()


@slow
def test_of_two_starts_at_once_none_says_that_a_finished_run_failed(
    stopped: Case, whole: Path
) -> None:
    words = [sys.executable, "-m", "experiments", *command(stopped.results)]
    both = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=400)[0].decode() for process in both]
    statuses = [process.returncode for process in both]
    assert set(statuses) <= {ExitStatus.FINISHED, ExitStatus.STOPPED}, said
    assert ExitStatus.FINISHED in statuses, said
    assert final_weights(stopped.path) == final_weights(whole)


# --- a run that has finished: what follows from its checkpoint is made anew, or taken from there


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        pytest.param(place, fault, marks=() if (place, fault) in quick else slow)
        for quick in [{("metrics.csv", "flipped"), ("summary.json", "a list")}]
        for place in ("metrics.csv", "summary.json", "config.toml", "checkpoint/step-*/state.json")
        for fault in ("cut", "flipped", "missing", "a list")
    ],
)
def test_records_of_a_finished_run_are_made_anew(finished: Case, place: str, fault: str) -> None:
    damaged = finished.find(place)
    damaged.write_text("[1]") if fault == "a list" else FAULTS[fault](damaged)
    assert not finished.start()
    assert not disagreement(finished.path)
    assert not finished.start() and "finished before" in finished.output


def edit_start(path: Path) -> None:
    """Write a start accuracy of 0.999 into metrics.csv."""
    with (path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        if row["phase"] == "start":
            row["val_accuracy"] = "0.999"
    with (path / "metrics.csv").open("w") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def edit_final(path: Path) -> None:
    """Write another test accuracy into summary.json, as of a release without a hash in it."""
    summary = json.loads((path / "summary.json").read_text())
    del summary["sha256"]
    summary["final"]["test_accuracy"] = 0.999
    (path / "summary.json").write_text(json.dumps(summary))


def collected(finished: Case, out: Path) -> list[str]:
    return ["collect", *command(finished.results)[1:2], *command(finished.results)[4:], "--out",
            str(out)]  # fmt: skip


def test_an_edited_figure_reaches_no_record_and_no_report(finished: Case, tmp_path: Path) -> None:
    out = tmp_path / "records"
    edit_start(finished.path)
    with pytest.raises(RunError, match=r"metrics.csv does not hold the rows of the checkpoint"):
        load_run(finished.path)
    assert not finished.refusal(collected(finished, out))
    assert "metrics.csv does not hold the rows of the checkpoint" in finished.output
    record = next(out.glob("demo/cells/*/seed0"))
    assert "0.999" not in (record / "metrics.csv").read_text()
    report = ["report", "demo", "--records", str(out)]
    edit_start(record)
    assert "metrics.csv is not what `collect` wrote" in finished.refusal(report)
    shutil.rmtree(out)
    edit_final(finished.path)
    assert not finished.refusal(collected(finished, out))
    assert "0.999" not in (record / "summary.json").read_text()


@pytest.mark.parametrize(
    ("place", "fault", "said"),
    [
        ("checkpoint", "missing", "has no checkpoint any more"),
        ("checkpoint/step-*/weights.safetensors", "flipped", "is damaged (weights.safetensors"),
        pytest.param("blobs/*", "cut", "is damaged", marks=slow),
        pytest.param("interference.csv", "cut", "", marks=slow),
    ],
)
def test_a_damaged_run_is_not_collected(
    finished: Case, tmp_path: Path, place: str, fault: str, said: str
) -> None:
    table = (finished.path / "interference.csv").read_bytes()
    FAULTS[fault](finished.find(place))
    found = finished.refusal(collected(finished, tmp_path / "records"))
    if said:
        assert said in found
    else:
        assert not found
        kept = next((tmp_path / "records").glob("demo/cells/*/seed0/interference.csv"))
        assert kept.read_bytes() == table
