"""The cache of arrays on disk."""

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedta_app import cache as fedta_cache
from fedta_app import hashed_files
from fedta_app.cache import Array, ArrayCache
from fedta_app.files import file_sha256

KEY = {"kind": "test", "of": 1}
SHAPE, SIZE = (4, 8), 4 * 8 * 4


class Counter:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, array: Array) -> None:
        self.calls += 1
        array[:] = np.arange(32, dtype="float32").reshape(SHAPE)


EXPECTED = np.arange(32, dtype="float32").reshape(SHAPE)


def array_file(folder: Path) -> Path:
    (path,) = folder.glob("*/array.npy")
    return path


def test_an_array_is_computed_once(tmp_path: Path) -> None:
    fill = Counter()
    for _ in range(3):
        cache = ArrayCache(tmp_path / "new" / "folder", 1e6)
        assert np.array_equal(cache.array(KEY, SHAPE, "float32", fill), EXPECTED)
    assert fill.calls == 1
    (entry,) = cache.entries()
    assert entry.key["of"] == 1 and entry.num_bytes >= SIZE


@pytest.mark.parametrize("change", [{"of": 2}, {"more": None}])
def test_another_key_is_another_array(tmp_path: Path, change: dict[str, object]) -> None:
    fill, cache = Counter(), ArrayCache(tmp_path, 1e6)
    cache.array(KEY, SHAPE, "float32", fill)
    cache.array({**KEY, **change}, SHAPE, "float32", fill)
    assert fill.calls == 2 and len(cache.entries()) == 2


def test_a_cache_of_somebody_else_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time stamp cannot be set there."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    fill, cache = Counter(), ArrayCache(tmp_path, 1e6)
    cache.array(KEY, SHAPE, "float32", fill)
    monkeypatch.setattr(os, "utime", refuse)
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", fill), EXPECTED)
    assert fill.calls == 1


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        flip,
        lambda path: (path.parent / "entry.json").write_text("{"),
        lambda path: (path.parent / "entry.json").write_text("[1]"),
        lambda path: (path.parent / "entry.json").unlink(),
        lambda path: (path.parent / "entry.json").write_text(json.dumps({"key": {}})),
    ],
)
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: object) -> None:
    fill, cache = Counter(), ArrayCache(tmp_path, 1e6)
    cache.array(KEY, SHAPE, "float32", fill)
    damage(array_file(tmp_path))  # type: ignore[operator]
    cache.entries()  # lists what is there, without an error
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", fill), EXPECTED)
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", fill), EXPECTED)
    assert fill.calls == 2


def test_a_process_hashes_an_entry_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []

    def count(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(fedta_cache, "file_sha256", count)
    monkeypatch.setattr(hashed_files, "file_sha256", count)
    for _ in range(3):
        ArrayCache(tmp_path, 1e6).array(KEY, SHAPE, "float32", Counter())
    assert len(hashed) == 2  # when it was written, and when it was first read


def test_writing_into_a_mapped_array_does_not_change_the_file(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 1e6)
    cache.array(KEY, SHAPE, "float32", Counter())[:] = 0
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", Counter()), EXPECTED)


def test_an_error_leaves_no_entry(tmp_path: Path) -> None:
    def fail(array: Array) -> None:
        raise RuntimeError("power cut")

    cache = ArrayCache(tmp_path, 1e6)
    with pytest.raises(RuntimeError, match="power cut"):
        cache.array(KEY, SHAPE, "float32", fail)
    assert not cache.entries()
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", Counter()), EXPECTED)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_disk_that_takes_less_than_it_says_caches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process has taken the room since, or there is a quota: a mapped file would kill."""

    def refuse(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    cache = ArrayCache(tmp_path, 1e6)
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", Counter()), EXPECTED)
    assert "not cached" in capsys.readouterr().out and not cache.entries()
    assert not list(tmp_path.glob(".*.tmp"))

    def unable(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    assert np.array_equal(cache.array(KEY, SHAPE, "float32", Counter()), EXPECTED)
    assert len(cache.entries()) == 1


def test_the_entries_unused_for_longest_make_room(tmp_path: Path) -> None:
    first = ArrayCache(tmp_path, 1e6)
    for number in range(3):
        first.array({**KEY, "of": number}, SHAPE, "float32", Counter())
    for number, entry in enumerate(first.entries()):
        os.utime(entry.folder / "entry.json", (number, number))
    each = first.entries()[0].num_bytes
    cache = ArrayCache(tmp_path, 3.5 * each)
    cache.array({**KEY, "of": 0}, SHAPE, "float32", Counter())  # used again: the youngest
    cache.array({**KEY, "of": 3}, SHAPE, "float32", Counter())
    assert {entry.key["of"] for entry in cache.entries()} == {0, 2, 3}
    assert sum(entry.num_bytes for entry in cache.entries()) <= 3.5 * each


@pytest.mark.parametrize(
    ("limit", "free", "said"),
    [(SIZE - 1, 1e9, "the limit of 1.27e-07 GB (cache-gb)"), (1e6, SIZE - 1, "GB that are free")],
)
def test_without_room_arrays_are_computed_in_memory(
    tmp_path: Path,
    limit: float,
    free: float,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    fill, cache = Counter(), ArrayCache(tmp_path, limit)
    for _ in range(2):
        assert np.array_equal(cache.array(KEY, SHAPE, "float32", fill), EXPECTED)
    assert fill.calls == 2 and not cache.entries()
    assert said in capsys.readouterr().out


def test_without_a_folder_arrays_are_computed_in_memory() -> None:
    fill, cache = Counter(), ArrayCache(None, 1e6)
    for _ in range(2):
        assert np.array_equal(cache.array(KEY, SHAPE, "float32", fill), EXPECTED)
    assert fill.calls == 2 and not cache.entries()


def test_clear_deletes_all_entries(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 1e6)
    cache.array(KEY, SHAPE, "float32", Counter())
    cache.clear()
    assert not cache.entries()


def _ask(folder: Path, log: Path) -> None:
    def fill(array: Array) -> None:
        with log.open("a") as stream:
            stream.write("computed\n")
        array[:] = EXPECTED

    assert np.array_equal(ArrayCache(folder, 1e6).array(KEY, SHAPE, "float32", fill), EXPECTED)


def test_of_several_processes_one_computes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    processes = [context.Process(target=_ask, args=(tmp_path / "cache", log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "computed\n"
