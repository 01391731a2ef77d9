"""Blobs, named by their sha256 and written whole; tensors in the layout of safetensors."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import torch as safetensors
from torch import Tensor

from fedta_app import hashed_files
from fedta_app.errors import RunError
from fedta_app.files import remove_temporary
from fedta_app.runs.blobs import BlobStore
from fedta_app.vectors.tensor_bytes import tensor_parts, tensors_in

DTYPES = [
    torch.float64, torch.int64, torch.float32, torch.int32, torch.float16, torch.bfloat16,
    torch.uint8, torch.bool,
]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


class TestStore:
    @pytest.mark.parametrize("size", [0, 1, 5, 6, 1000])
    def test_parts_are_stored_as_one_under_the_hash_of_all(
        self, store: BlobStore, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hashed_files, "_PIECE", 5)
        parts = [bytes(range(7)), b"", memoryview(bytes(i % 251 for i in range(size)))]
        whole = b"".join(parts)
        digest = store.put(*parts)
        assert digest == hashlib.sha256(whole).hexdigest() == store.put(whole)
        assert [path.name for path in store.folder.iterdir()] == [digest]
        assert store.get(digest) == whole == (store.folder / digest).read_bytes()

    def test_what_is_returned_is_the_callers_own(self, store: BlobStore) -> None:
        digest = store.put(b"abc")
        store.get(digest)[0] = 0
        assert store.get(digest) == b"abc"

    def test_a_damaged_blob_is_refused_and_written_anew(self, store: BlobStore) -> None:
        digest = store.put(b"abc", b"def")
        for damage in (b"abcdeg", b"abc", b"", b"abcdefg"):
            (store.folder / digest).write_bytes(damage)
            with pytest.raises(RunError, match="is damaged"):
                store.get(digest)
            assert store.put(b"abcdef") == digest
            assert store.get(digest) == b"abcdef"

    def test_a_blob_is_hashed_once_as_long_as_it_is_the_same_file(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest = store.put(b"abc", b"def")
        path = store.folder / digest
        with monkeypatch.context() as patch:
            patch.setattr(hashed_files, "_Hash", None)  # nobody may hash
            assert store.get(digest) == b"abcdef"
        changed = path.stat().st_mtime_ns + 1
        path.write_bytes(b"abcdeg")  # of the same length, in the same place
        os.utime(path, ns=(changed, changed))
        with pytest.raises(RunError, match="is damaged"):
            store.get(digest)

    def test_hashes_are_forgotten_where_they_become_too_many(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hashed_files, "_HASHES", {})
        monkeypatch.setattr(hashed_files, "_MOST_HASHES", 3)
        digests = [store.put(bytes([number]), b"") for number in range(8)]
        assert len(hashed_files._HASHES) <= 3
        assert [bytes(store.get(digest)) for digest in digests] == [bytes([n]) for n in range(8)]

    @pytest.mark.parametrize("odd", ["", "../secret", "A" * 64, "0" * 63])
    def test_a_name_that_is_no_sha256_reads_no_file(self, store: BlobStore, odd: str) -> None:
        with pytest.raises(RunError, match="is not the sha256 of a blob"):
            store.get(odd)

    def test_a_write_that_fails_leaves_nothing(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            store.put(b"abc", b"def")
        assert not list(store.folder.iterdir())


shapes = st.lists(st.integers(0, 4), max_size=3)
names = st.text(min_size=1, max_size=5).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


class TestTensors:
    @given(st.dictionaries(names, tensors(), max_size=5))
    def test_the_library_reads_what_is_written_and_writes_what_is_read(
        self, given: dict[str, Tensor]
    ) -> None:
        data = b"".join(tensor_parts(given))
        for found in (
            tensors_in(memoryview(bytearray(data))),
            safetensors.load(data),
            tensors_in(memoryview(bytearray(safetensors.save(given)))),
        ):
            assert found.keys() == given.keys()
            for name, tensor in given.items():
                assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)

    def test_nothing_is_copied(self) -> None:
        vector = torch.zeros(3)
        parts = tensor_parts({"vector": vector})
        vector[0] = 1
        data = memoryview(bytearray(b"".join(parts)))
        found = tensors_in(data)["vector"]
        assert found.tolist() == [1, 0, 0]
        found.zero_()
        assert not any(data[-12:])

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x02\0\0\0\0\0\0\0[]",
            b"\x02\0\0\0\0\0\0\0{}"[:-1],
            b"\xff" * 20,
            (lambda text: len(text).to_bytes(8, "little") + text)(
                b'{"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}'
            )
            + bytes(4),
            (lambda text: len(text).to_bytes(8, "little") + text)(
                b'{"x": {"dtype": "F8", "shape": [1], "data_offsets": [0, 4]}}'
            )
            + bytes(4),
        ],
    )
    def test_other_bytes_are_refused_in_one_sentence(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="the bytes are not those of tensors"):
            tensors_in(memoryview(bytearray(data)))


@pytest.mark.parametrize("size", [10, 1000, 5000])
def test_a_blob_takes_the_place_of_one_that_nobody_needs(tmp_path: Path, size: int) -> None:
    """It is written over, and may be shorter or longer."""
    store = BlobStore(tmp_path)
    first, second, kept = (store.put(bytes([number]) * 1000) for number in (1, 2, 3))
    old = {(tmp_path / digest).stat().st_ino for digest in (first, second)}
    store.keep_only({kept}, make_way=True)
    assert not any((tmp_path / digest).exists() for digest in (first, second))
    data = os.urandom(size)
    digest = store.put(data)
    assert digest == hashlib.sha256(data).hexdigest() and bytes(store.get(digest)) == data
    assert (tmp_path / digest).stat().st_ino in old
    assert {path.name for path in tmp_path.iterdir()} == {kept, digest}
    assert bytes(store.get(kept)) == b"\3" * 1000


def test_a_backup_of_hard_links_keeps_its_bytes(tmp_path: Path) -> None:
    store, backup = BlobStore(tmp_path / "blobs"), tmp_path / "backup"
    first = store.put(b"1" * 1000)
    os.link(store.folder / first, backup)
    store.keep_only((), make_way=True)
    second = store.put(b"2" * 1000)
    assert backup.read_bytes() == b"1" * 1000
    assert [path.name for path in store.folder.iterdir()] == [second]


def test_a_place_that_is_not_taken_is_removed_as_what_a_crash_left(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    store.put(b"1")
    store.keep_only((), make_way=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    remove_temporary(tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_is_read_into_again_unless_somebody_holds_it(tmp_path: Path) -> None:
    store, buffer = BlobStore(tmp_path), hashed_files.ReadBuffer()
    digests = [store.put(b"x", bytes([number]) * 4096) for number in range(3)]

    def tensor(digest: str) -> Tensor:
        return torch.frombuffer(store.get(digest, buffer), dtype=torch.uint8)[1:]

    held = tensor(digests[0])
    place = held.data_ptr()
    other = tensor(digests[1])
    assert other.data_ptr() != place and held[0] == 0 and other[0] == 1
    del held, other
    first = tensor(digests[2]).data_ptr()  # dropped at once
    assert tensor(digests[0]).data_ptr() == first
    assert tensor(store.put(b"longer" * 1000))[5] == ord("l")
