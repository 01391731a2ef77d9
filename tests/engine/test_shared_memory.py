"""Memory shared between processes: read in place, used again, gone with its processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine import shared_memory
from engine.shared_memory import SharingError, handle, read, release, take

pytestmark = pytest.mark.skipif(not shared_memory.can_share(), reason="no anonymous files here")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_buffers(monkeypatch):
    monkeypatch.setattr(shared_memory, "_own", [])


def handle_of(tensor):
    found = handle(tensor)
    assert found is not None
    return found


def in_another_process(code):
    command = [sys.executable, "-c", f"import torch\nfrom engine.shared_memory import *\n{code}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_another_process_reads_and_writes_the_same_memory():
    vector = take((3,), torch.float32).copy_(torch.tensor([1.0, 2.0, 3.0]))
    out = in_another_process(
        f"vector = read({handle_of(vector)!r}, (3,), torch.float32)\n"
        "print(vector.tolist())\nvector[0] = 7"
    )
    assert out == "[1.0, 2.0, 3.0]"
    assert vector.tolist() == [7, 2, 3]


def test_a_buffer_is_used_again_when_its_reader_let_go_and_not_before():
    first = take((4,), torch.float64)
    second = take((4,), torch.float64)
    assert first.data_ptr() != second.data_ptr()
    in_another_process(f"release({handle_of(first)!r})")
    again = take((8,), torch.float32)
    assert again.data_ptr() == first.data_ptr()
    assert len(shared_memory._own) == 2


def test_replies_that_came_too_late_are_freed_in_a_later_round():
    """Else a process would keep a buffer for ever for each of them."""
    sent = take((4,), torch.float32)  # what the server sends has no number
    late = [take((4,), torch.float32, number) for number in (1, 2)]
    shared_memory.free_before(1)
    assert all(buffer.taken for buffer in shared_memory._own)
    shared_memory.free_before(2)
    assert take((4,), torch.float32, 2).data_ptr() == late[0].data_ptr()
    for number in range(3, 50):
        shared_memory.free_before(number)
        take((4,), torch.float32, number)
    assert len(shared_memory._own) == 3 and sent.data_ptr() == shared_memory._own[0].data.data_ptr()


def test_a_buffer_that_is_too_small_makes_room_for_a_larger_one():
    small = take((2,), torch.float32).copy_(torch.tensor([1.0, 2.0]))
    release(handle_of(small))
    take((100,), torch.float32).fill_(7)
    assert len(shared_memory._own) == 1
    assert small.tolist() == [1, 2]  # still mapped while somebody holds it


def test_the_smallest_buffer_that_fits_is_taken():
    sizes = (100, 10, 50)
    vectors = [take((size,), torch.uint8) for size in sizes]
    for vector in vectors:
        release(handle_of(vector))
    assert take((20,), torch.uint8).data_ptr() == vectors[2].data_ptr()


def test_only_a_vector_of_this_memory_has_a_handle():
    vector = take((4,), torch.float32)
    assert handle(torch.zeros(4)) is None
    assert handle(vector[1:]) is None


@pytest.mark.parametrize("wrong", [{"pid": 2**22 + 1}, {"fd": 12345}, {"token": "00" * 16}])
def test_memory_that_is_not_there_or_another_is_refused(wrong):
    where = json.loads(handle_of(take((4,), torch.float32)))
    with pytest.raises(SharingError, match="/proc/"):
        read(json.dumps({**where, "token": "11" * 16, **wrong}).encode(), (4,), torch.float32)


def test_nothing_is_left_when_the_process_is_killed():
    names = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    code = (
        "import time, torch\nfrom engine.shared_memory import take, handle\n"
        "vector = take((1 << 20,), torch.float32).fill_(1)\n"
        "print(handle(vector).decode(), flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    assert read(found, (1 << 20,), torch.float32).sum() == 1 << 20
    opened = Path(f"/proc/{process.pid}/fd/{json.loads(found)['fd']}")
    assert "memfd:fedta" in os.readlink(opened)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    shared_memory._mapped.cache_clear()  # this process's mapping was the last
    time.sleep(0.01)
    with pytest.raises(SharingError):
        read(found, (1 << 20,), torch.float32)
    if names:
        assert not [path for path in Path("/dev/shm").iterdir() if "fedta" in path.name]


# --- handles come from other processes: they name anonymous memory of this user, and nothing else


def test_a_file_is_never_mapped_whatever_a_handle_says(tmp_path):
    """The hole that a reply could open: a path in place of a descriptor, or a file behind it."""
    path = tmp_path / "secret"
    before = bytes(range(256)) * 2
    path.write_bytes(before)
    token = before[:16].hex()  # even with the right token
    with path.open("r+b") as stream:
        where = [
            {"pid": os.getpid(), "fd": f"../../..{path}", "token": token},
            {
                "pid": f"{os.getpid()}/fd/{stream.fileno()}/../..",
                "fd": stream.fileno(),
                "token": token,
            },
            {"pid": os.getpid(), "fd": stream.fileno(), "token": token},
            {"pid": os.getpid(), "fd": True, "token": token},
        ]
        for claim in where:
            for use in (lambda h: read(h, (4,), torch.float32), release):
                with pytest.raises(SharingError):
                    use(json.dumps(claim).encode())
    assert path.read_bytes() == before


def test_anonymous_memory_of_somebody_else_is_refused():
    """Another library's, or another user's: the name and the owner are looked at."""
    descriptor = os.memfd_create("other")
    os.write(descriptor, b"\x11" * 4096)
    claim = {"pid": os.getpid(), "fd": descriptor, "token": "11" * 16}
    with pytest.raises(SharingError, match="not shared memory of this user's runs"):
        read(json.dumps(claim).encode(), (4,), torch.float32)
    os.close(descriptor)


def test_another_users_memory_is_refused(monkeypatch):
    vector = take((4,), torch.float32)
    found = handle_of(vector)
    monkeypatch.setattr(shared_memory, "_own", [])
    shared_memory._mapped.cache_clear()
    monkeypatch.setattr(shared_memory, "_user", lambda: os.getuid() + 1)
    with pytest.raises(SharingError, match="this user's"):
        read(found, (4,), torch.float32)


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b"7", b'{"pid": 1}', b"\xff\xfe", b"null"])
def test_a_handle_that_is_none_is_refused(rubbish):
    for use in (lambda h: read(h, (4,), torch.float32), release):
        with pytest.raises(SharingError):
            use(rubbish)


def test_a_vector_larger_than_its_memory_is_refused():
    found = handle_of(take((4,), torch.float32))
    with pytest.raises(SharingError, match="too small"):
        read(found, (1 << 20,), torch.float64)
