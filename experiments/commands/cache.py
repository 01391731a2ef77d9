"""`cache`: show or clear what is kept for later runs on this machine."""

import argparse
import time

from experiments.exit_status import ExitStatus
from fedta_app.cache import ArrayCache, Entry
from fedta_app.config import RunConfig
from fedta_app.runs.directory import cache_path


def run(options: argparse.Namespace) -> ExitStatus:
    """Print the entries of the cache, and delete them if that is asked for."""
    folder = options.cache_dir or cache_path(RunConfig())
    cache = ArrayCache(folder, 0)
    entries = cache.entries()
    for entry in entries:
        print(_line(entry))
    total = sum(entry.num_bytes for entry in entries)
    if options.clear:
        cache.clear()
    did = "deleted" if options.clear else "kept"
    print(f"{len(entries)} entries, {total / 1e9:.2f} GB, {did} in {folder}")
    return ExitStatus.FINISHED


def _line(entry: Entry) -> str:
    kind, split = entry.key.get("kind", ""), entry.key.get("split", entry.key.get("folder", ""))
    shape = " x ".join(map(str, entry.key.get("shape", [])))
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    return f"{kind} {split:<6} {shape:<24} {entry.num_bytes / 1e6:9.1f} MB  last used {used}"
