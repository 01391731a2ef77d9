"""The table `smoke`, killed and restarted, through both engines: the same table in the end."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.running.killing import kill_tree

ROOT = Path(__file__).resolve().parents[3]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "experiments", *map(str, arguments)]


def run(folder: Path, *more: str) -> list[str]:
    return command("run", "smoke", "--results-dir", folder / "runs", *more)


def kill_in_the_middle(folder: Path, line: str, *more: str) -> None:
    """Kill the runner when this line is printed for the second time."""
    process = subprocess.Popen(
        run(folder, *more), cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    seen = 0
    for printed in process.stdout:
        seen += line.encode() in printed
        if seen == 2:
            break
    assert seen == 2
    time.sleep(0.5)  # somewhere in a round
    kill_tree(process)
    process.stdout.close()


def table(folder: Path) -> dict[str, bytes]:
    """Collect and report, and return what holds no times."""
    places = {"collect": ["--results-dir", folder / "runs"], "report": ["--records", folder]}
    for name in ("collect", "report"):
        out = ["--out", folder]
        subprocess.run(command(name, "smoke", *places[name], *out), cwd=ROOT, check=True)
    found = [folder / f"smoke/{name}" for name in ("table.tex", "presets.csv", "comparisons.csv")]
    figures = (folder / "smoke/figures").iterdir()
    return {path.name: path.read_bytes() for path in [*found, *figures]}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_and_restarted_it_ends_with_the_same_table(tmp_path: Path) -> None:
    tables = []
    for engine, jobs in (("in-process", "1"), ("in-process", "2"), ("flower", "1")):
        folder = tmp_path / f"{engine}-{jobs}"
        more = ["--engine", engine, "--jobs", jobs]
        if tables:  # the first is not broken
            kill_in_the_middle(folder, "train round 3", *more)
        done = subprocess.run(run(folder, *more), cwd=ROOT, check=True, stdout=subprocess.PIPE)
        assert b"8 of 8 cells are finished" in done.stdout
        tables.append(table(folder))
    assert tables[0] == tables[1] == tables[2]
