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


def test_a_buffer_that_is_too_small_makes_room_for_a_larger_one():
    small = take((2,), torch.float32)
    release(handle_of(small))
    take((100,), torch.float32)
    assert len(shared_memory._own) == 1
    assert small.tolist() == small.tolist()  # still mapped while somebody holds it


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
