from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save empty files for figures, whose drawing takes longer than a run of two rounds.

    A test marked `draws` draws them.
    """

    def touch(figure: Figure, path: Path, **_: Any) -> None:
        path.touch()

    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(Figure, "savefig", touch)
