"""docs/assignment.md, typed as it says, in a copy of the app."""

import csv
from pathlib import Path

import pytest

from experiments.reporting.frames import DIFFERS, EQUIVALENT, UNDECIDED
from tests.docs.pages import ROOT, app_with, check_style, run_console

PAGE = ROOT / "docs" / "assignment.md"
REPORTS = {
    "centralized-tiny": ["curves", "loss"],
    "heterogeneity-tiny": ["curves", "heat-map", "classes"],
    "sparsity-tiny": ["heat-map-nc5", "mask-overlap-nc5"],
    "mask-rules-tiny": ["curves-frozen", "mask-overlap-frozen", "mask-density-frozen"],
    "six-models-tiny": ["curves", "heat-map"],
    "mine": ["curves", "loss", "mask-overlap"],
}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_course_from_the_first_command_to_the_report(tmp_path: Path) -> None:
    app = app_with(PAGE, tmp_path)
    check_style(PAGE, app)
    printed = run_console(PAGE, app)

    for table, figures in REPORTS.items():
        folder = app / "results" / table
        report = (folder / "report.md").read_text()
        assert "FAILS" not in report
        for figure in figures:
            assert (folder / "figures" / f"{figure}.png").stat().st_size > 5000, figure
        name = table.removesuffix("-tiny")
        typed = [
            line for line in printed if line.split()[2:4] in (["run", name], ["run", f"{name}/"])
        ]
        for line in typed:  # what was typed is what is printed
            assert line.replace(" --results-dir runs", "") in report.replace("\n", " "), line
    latex = (app / "results/six-models-tiny/table.tex").read_text()
    assert r"\toprule" in latex and latex.count(r"\pm") == 6
    with (app / "results/mine/comparisons.csv").open() as stream:
        words = [row["verdict"] for row in csv.DictReader(stream)]
    assert len(words) == 2 and set(words) <= {DIFFERS, EQUIVALENT, UNDECIDED}

    schedules = sorted((app / "runs/centralized-tiny").glob("*/seed0/curves.png"))
    assert len(schedules) == 4
    with (app / "runs/test-curves/seed0/metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["phase"] == "train"]
    for column in ("train_loss", "val_loss", "test_loss", "val_accuracy", "test_accuracy"):
        assert all(row[column] for row in rows), column
    assert list((app / "results/tuning").glob("**/search.toml"))
    assert list((app / "comparison").glob("*.png"))
