"""The CPUs of this machine."""

import os
from pathlib import Path


def usable_cpus() -> int:
    """Return how many CPUs this process may use: a cluster binds a job to some, or sets a quota."""
    number = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(number, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # there is no quota
        return number
