"""The notebooks of results/: they run, and read nothing but what is committed there."""

import ast
import shutil
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.reporting.reading import RESULTS

NOTEBOOKS = sorted(RESULTS.glob("*.ipynb"))
COLAB = "colab.ipynb"  # of another machine: see test_colab.py
# All read their records alike, so that a quick run of the tests takes the smallest alone.
RUN_HERE = [
    pytest.param(path, marks=[] if path.name == "smoke.ipynb" else pytest.mark.slow)
    for path in NOTEBOOKS
    if path.name != COLAB
]


def code(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_imports_experiments_only(path: Path) -> None:
    for source in code(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom | ast.Import):
                module = getattr(node, "module", None) or node.names[0].name
                installing = {"google", *sys.stdlib_module_names} if path.name == COLAB else set()
                allowed = {"experiments", *installing}
                assert module.split(".")[0] in allowed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_begins_with_its_title(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")  # of the kernel and its event loop
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A home that cannot be written to, or settings in it, change nothing.
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    # With the list of fonts that this process made: the kernel would warn that it makes one.
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
    monkeypatch.setenv("PYTHONPATH", str(RESULTS.parent))  # this checkout, whatever is installed
    notebook = nbformat.read(path, as_version=4)
    stored = _words(notebook)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": RESULTS}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if output.output_type == "stream"]  # warnings
    assert _words(notebook) == stored, "execute it again, and commit it"


def _words(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """Return the words of each output, however wide the lines were that they stand in."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [set(output.get("data", {}).get("text/plain", "").split()) for output in outputs]


# A page and its numbers are made anew in a quick run; the figures are drawn in a slow one too.
@pytest.mark.parametrize(
    "drawn", [False, pytest.param(True, marks=[pytest.mark.draws, pytest.mark.slow])]
)
def test_a_report_changes_nothing_that_is_committed(tmp_path: Path, drawn: bool) -> None:
    kept = [path.parent for path in RESULTS.glob("*/cells")]
    assert kept
    shutil.copytree(RESULTS, tmp_path / "results")
    assert main(["report", "--records", str(tmp_path / "results")]) == ExitStatus.FINISHED
    for folder in kept:
        for path in folder.rglob("*.*"):
            copy = tmp_path / "results" / path.relative_to(RESULTS)
            # Another matplotlib draws other pixels; the numbers are the same everywhere.
            if path.suffix not in (".png", ".svg"):
                assert copy.read_bytes() == path.read_bytes(), path
        figures = list((tmp_path / "results" / folder.name / "figures").iterdir())
        assert {p.name for p in figures} == {path.name for path in (folder / "figures").iterdir()}
        assert all(p.stat().st_size > 1000 for p in figures) or not drawn
