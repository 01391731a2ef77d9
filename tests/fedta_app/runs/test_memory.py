"""The peaks of memory in metrics.csv: of a round, where the system can forget an earlier one."""

import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.runs.memory import peaks, reset_peaks

MB = 1e6
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only on Linux")


@linux
def test_a_peak_is_of_the_time_since_the_last_reset() -> None:
    reset_peaks()
    before = peaks()["memory_mb"]
    # Not torch's: what it frees may stay with the process, as a run asks of the allocator.
    with mmap.mmap(-1, int(200 * MB)) as large:
        for start in range(0, len(large), mmap.PAGESIZE):
            large[start] = 1
    during = peaks()["memory_mb"]
    reset_peaks()
    after = peaks()["memory_mb"]
    assert during - before == pytest.approx(200, abs=20)
    assert after < before + 100


def test_a_system_without_proc_tells_the_peak_of_the_whole_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = pytest.importorskip("resource")

    def nothing(path: Path, *arguments: object) -> None:
        raise FileNotFoundError(path)

    expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(Path, "write_text", nothing)
    reset_peaks()
    assert peaks()["memory_mb"] == pytest.approx(expected, rel=0.1)
    monkeypatch.setattr(sys, "platform", "darwin")  # which counts bytes
    assert peaks()["memory_mb"] == pytest.approx(expected / 1024, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    assert "memory_mb" not in peaks()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Stand-ins for two GPUs: the bytes at their peaks."""
    held = [int(300 * MB), int(700 * MB)]
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", held.__getitem__)
    monkeypatch.setattr("torch.cuda.memory_snapshot", list)
    monkeypatch.setattr(
        "torch.cuda.reset_peak_memory_stats", lambda device: held.__setitem__(device, 0)
    )
    yield held


def test_the_gpu_is_the_fullest_one(gpus: list[int]) -> None:
    assert peaks()["gpu_memory_mb"] == 700.0
    reset_peaks()
    assert peaks()["gpu_memory_mb"] == 0.0


def test_what_graphs_keep_for_themselves_counts(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def segment(device: int, total: int, allocated: int, pool: tuple[int, int]) -> dict[str, Any]:
        sizes = {"total_size": int(total * MB), "allocated_size": int(allocated * MB)}
        return {"device": device, "segment_pool_id": pool, **sizes}

    found = [segment(0, 900, 100, (0, 1)), segment(0, 200, 200, (0, 1)), segment(1, 500, 0, (0, 0))]
    monkeypatch.setattr("torch.cuda.memory_snapshot", lambda: found)
    assert peaks()["gpu_memory_mb"] == 300 + 800  # the other one keeps 500 for anybody


def test_a_process_that_has_not_touched_a_gpu_does_not_do_so_now() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("another test has used the GPU")
    assert "gpu_memory_mb" not in peaks()
    assert not torch.cuda.is_initialized()


def test_a_gpu_is_measured(cuda: torch.device) -> None:
    torch.ones(1, device=cuda)
    reset_peaks()
    before = peaks()["gpu_memory_mb"]
    torch.ones(int(50 * MB), device=cuda)
    assert peaks()["gpu_memory_mb"] - before == pytest.approx(200, abs=5)
