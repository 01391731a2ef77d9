"""docs/extending.md, done as it says, in a copy of the app."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedta_app.algorithms import Algorithm
from tests.docs.pages import ROOT, app_with, blocks, check_style, run_console
from tests.fedta_app.algorithms.simulation import Server, clients, optimum, schedule

PAGE = ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the app, committed, with the files that the page adds."""
    return app_with(PAGE, tmp_path_factory.mktemp("app"))


def test_the_commands_of_the_page_run_in_their_order(app: Path) -> None:
    run_console(PAGE, app)
    report = (app / "results" / "stripes" / "report.md").read_text()
    assert "two classes per client cost" in report and "FAILS" not in report


def test_the_files_of_the_page_pass_the_checks(app: Path) -> None:
    check_style(PAGE, app)


def test_feddyn_reaches_the_optimum_that_fedavg_misses() -> None:
    (source,) = [block.text for block in blocks(PAGE) if block.title.endswith("feddyn.py")]
    names: dict[str, Any] = {"__name__": "feddyn"}
    exec(source.replace('ClassVar[str] = "feddyn"', 'ClassVar[str] = ""'), names)  # unregistered
    distances = []
    for algorithm in (Algorithm(), names["FedDyn"](num_clients=6, pull=1.0)):
        those = clients(6, 3)
        server = Server(algorithm, those, torch.zeros(3, dtype=torch.float64), momentum=0.9)
        for chosen in schedule(600, 6, 3):
            server.run_round(chosen)
        distances.append(float((server.weights - optimum(those)).abs().max()))
    assert distances[0] > 0.01 and distances[1] < 1e-9
