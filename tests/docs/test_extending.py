"""docs/extending.md, done as it says, in a copy of the app."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.quadratics import Server, clients, schedule
from fedta_app.algorithms import Algorithm
from tests.docs.pages import ROOT, app_with, blocks, check_style, run_console

PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the app, committed, with the files that the page adds."""
    return app_with(PAGE, tmp_path_factory.mktemp("app"))


@pytest.mark.slow
def test_the_commands_of_the_page_run_in_their_order(app: Path) -> None:
    run_console(PAGE, app)
    report = (app / "results" / "stripes" / "report.md").read_text()
    assert "two classes per client cost" in report and "FAILS" not in report


def test_the_script_makes_the_folder_that_it_is_given(app: Path, tmp_path: Path) -> None:
    """A fresh clone has no folder for data."""
    script = [sys.executable, str(app / "make_stripes.py"), str(tmp_path / "data")]
    subprocess.run(script, check=True)
    assert (tmp_path / "data" / "stripes.npz").is_file()


def test_the_files_of_the_page_pass_the_checks(app: Path) -> None:
    check_style(PAGE, app)


@pytest.fixture(scope="module")
def fedexp() -> Algorithm:
    """Return the algorithm of the page, without a name in the registry."""
    (source,) = [block.text for block in blocks(PAGE) if block.title.endswith("fedexp.py")]
    names: dict[str, Any] = {"__name__": "fedexp"}
    exec(source.replace('ClassVar[str] = "fedexp"', 'ClassVar[str] = ""'), names)
    algorithm: Algorithm = names["FedExP"]()
    return algorithm


def test_fedexp_takes_the_step_of_the_paper(fedexp: Algorithm) -> None:
    those = clients(6, 3)
    server = Server(fedexp, those, torch.zeros(3, dtype=torch.float64))
    lengths = []
    for chosen in schedule(5, 6, 3):
        updates = []
        for client in (those[k] for k in chosen):
            w = server.weights.clone()
            for _ in range(server.steps):
                w -= server.lr * client.gradient(w)
            updates.append((w - server.weights).tolist())
        mean = [sum(entries) / 3 for entries in zip(*updates, strict=True)]
        squares = sum(entry**2 for update in updates for entry in update)
        length = max(1.0, squares / (2 * 3 * (sum(entry**2 for entry in mean) + 0.001)))
        expected = server.weights + length * torch.tensor(mean, dtype=torch.float64)
        server.run_round(chosen)
        torch.testing.assert_close(server.weights, expected)
        lengths.append(length)
    assert max(lengths) > 1 == min(lengths)  # both sides of the maximum


def test_fedexp_is_faster_where_each_client_knows_a_part_of_one_optimum(fedexp: Algorithm) -> None:
    """The setting of the paper: many more weights than any client's images determine."""
    distances = []
    for algorithm in (Algorithm(), fedexp):
        those = clients(6, 12)
        best = 20 * those[0].optimum
        for number, client in enumerate(those):
            client.optimum = best
            client.curvature = torch.zeros(12, dtype=torch.float64)
            client.curvature[2 * number : 2 * number + 2] = 1.0
            client.num_examples = 1
        server = Server(algorithm, those, torch.zeros(12, dtype=torch.float64))
        for _ in range(60):
            server.run_round(range(6))
        distances.append(float((server.weights - best).norm()))
    assert distances[1] < 0.2 * distances[0]
