"""What the cells of a table take beyond their training rounds and measurements.

    python -m benchmarks.bench_table "heterogeneity/*-j16" [--scale small] [--cells 8]
                                     [--data-dir DIR] [--json FILE]

Each cell is a process of its own on the in-process engine, one after the other, as in
`run --jobs 1` after an interruption. The cache is empty at the beginning, so the first cell
computes what depends on weights and data only, and the others find it: ideally they take as long
as their rounds and measurements.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.processes import run_apart
from benchmarks.harness.report import facts, write
from experiments.running.presets import select


def cell_seconds(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return the wall time of a cell, and what of it went into rounds and measurements."""
    clock = folder / "seconds"
    began = time.perf_counter()
    run_apart([sys.executable, "-m", "benchmarks.harness.timed_cells", str(clock), *arguments])
    return time.perf_counter() - began, float(clock.read_text())


def main(arguments: list[str] | None = None) -> None:
    """Print a line per cell and the ratio of the sums, and write the JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("selection", metavar="TABLE[/PRESET]")
    parser.add_argument("--scale", default="")
    parser.add_argument("--cells", type=int, default=8, help="of the presets, then further seeds")
    parser.add_argument("--data-dir")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    table, presets = select(options.selection, options.scale)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = ["--engine", "in-process", "--results-dir", str(folder), "--seeds", "1"]
        places += ["--set", f"cache-dir={folder / 'cache'}"]
        places += ["--scale", options.scale] if options.scale else []
        places += ["--data-dir", options.data_dir] if options.data_dir else []
        for number in range(options.cells):
            preset, seed = presets[number % len(presets)], number // len(presets)
            cell = [f"{table.name}/{preset.name}", "--set", f"seed={seed}"]
            wall, useful = cell_seconds(["run", *cell, *places], folder)
            rows.append({"cell": f"{preset.name} seed {seed}", "wall": wall, "useful": useful})
            print(
                f"{preset.name} seed {seed}: {wall:.1f} s, {wall / useful:.2f} x its rounds",
                flush=True,
            )
    for what, chosen in (("all cells", rows), ("without the first", rows[1:])):
        if chosen:
            ratio = sum(row["wall"] for row in chosen) / sum(row["useful"] for row in chosen)
            print(f"{what}: {ratio:.3f} x their rounds and measurements")
    write(options.json, {**facts(), "rows": rows})


if __name__ == "__main__":
    main()
