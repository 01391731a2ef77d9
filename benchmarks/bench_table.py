"""What the cells of a table take beyond their training rounds and measurements.

    python -m benchmarks.bench_table "heterogeneity/*-j16" [--scale small] [--cells 8]
                                     [--set num-server-rounds=20] [--data-dir DIR] [--json FILE]

The cells run one after the other in one process, on the in-process engine, as `run TABLE` does. The
cache is empty at the beginning, so the first cell computes what depends on weights and data only,
and the others find it: ideally they take as long as their rounds and measurements. The first cell's
time includes the start of the process. What is computed once weighs less the longer the cells are:
`--set` gives them other rounds than those of the table.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness.processes import run_apart
from benchmarks.harness.report import facts, write
from experiments.running.presets import select


def cell_seconds(commands: list[list[str]], folder: Path) -> list[tuple[float, float]]:
    """Return the wall time of each cell, and what of it went into rounds and measurements."""
    words, clock = folder / "commands", folder / "seconds"
    words.write_text(json.dumps(commands))
    began = time.perf_counter()
    run_apart(
        [sys.executable, "-m", "benchmarks.harness.timed_cells", str(words), str(clock)],
        patience=math.inf,
    )
    wall = time.perf_counter() - began
    (first, useful), *others = json.loads(clock.read_text())
    start = wall - first - sum(one for one, _ in others)
    return [(first + start, useful), *others]


def main(arguments: list[str] | None = None) -> None:
    """Print a line per cell and the ratio of the sums, and write the JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("selection", metavar="TABLE[/PRESET]")
    parser.add_argument("--scale", default="")
    parser.add_argument("--cells", type=int, default=8, help="of the presets, then further seeds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--data-dir")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    table, presets = select(options.selection, options.scale)
    cells = [
        (presets[number % len(presets)].name, number // len(presets))
        for number in range(options.cells)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = ["--engine", "in-process", "--results-dir", str(folder), "--seeds", "1"]
        for pair in (f"cache-dir={folder / 'cache'}", *options.set):
            places += ["--set", pair]
        places += ["--scale", options.scale] if options.scale else []
        places += ["--data-dir", options.data_dir] if options.data_dir else []
        commands = [
            ["run", f"{table.name}/{preset}", "--set", f"seed={seed}", *places]
            for preset, seed in cells
        ]
        seconds = cell_seconds(commands, folder)
    rows = []
    for (preset, seed), (wall, useful) in zip(cells, seconds, strict=True):
        rows.append({"cell": f"{preset} seed {seed}", "wall": wall, "useful": useful})
        print(f"{preset} seed {seed}: {wall:.1f} s, {wall / useful:.2f} x its rounds")
    for what, chosen in (("all cells", seconds), ("without the first", seconds[1:])):
        if chosen:
            wall, useful = (sum(times) for times in zip(*chosen, strict=True))
            print(f"{what}: {wall / useful:.3f} x their rounds and measurements")
    write(options.json, {**facts(), "rows": rows})


if __name__ == "__main__":
    main()
