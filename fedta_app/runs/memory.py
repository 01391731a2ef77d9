"""The most memory that this process, and its GPU, took for a while."""

import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch

_MEGABYTE = 1e6
_KIBIBYTE = 1024  # Linux's "kB"


def reset_peaks() -> None:
    """Begin to measure anew: `peaks` then reports the most since this call.

    Only Linux can forget an earlier peak of a process; elsewhere the peak is that of its whole
    life. The peak of the GPU is that of torch's allocator, and can always be forgotten.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for device in _devices():
        torch.cuda.reset_peak_memory_stats(device)


def peaks() -> dict[str, float]:
    """Return the peaks since `reset_peaks` in megabytes, those that the system tells.

    Returns
    -------
    dict of str to float
        `memory_mb`: resident memory of the process, pages that it shares with others included;
        `gpu_memory_mb`: what torch held on one GPU, the fullest, where it uses any; with CUDA
        graphs, all that these keep for themselves included.
    """
    found = {}
    if (resident := _resident_peak()) is not None:
        found["memory_mb"] = resident
    private = _of_graphs()
    if allocated := [
        torch.cuda.max_memory_allocated(device) + private[device] for device in _devices()
    ]:
        found["gpu_memory_mb"] = max(allocated)
    return {name: round(size / _MEGABYTE, 1) for name, size in found.items()}


def _of_graphs() -> Counter[int]:
    """Return the bytes, for each GPU, that CUDA graphs have for themselves.

    The allocator counts them as free, although a replay writes to them, and nobody else may.
    """
    found: Counter[int] = Counter()
    for segment in torch.cuda.memory_snapshot() if _devices() else ():
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0):
            found[segment["device"]] += segment["total_size"] - segment["allocated_size"]
    return found


def _devices() -> range:
    """Return the numbers of the GPUs, none in a process that has not touched one."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def _resident_peak() -> int | None:
    """Return the bytes of the largest resident set, or None on a system that does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _KIBIBYTE
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIBIBYTE
