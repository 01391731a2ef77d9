from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True)
def blank_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save empty files for figures, whose drawing takes longer than a run of two rounds.

    A test marked `draws` draws them.
    """

    def nothing(figure: Figure, *arguments: Any, **options: Any) -> None:
        pass

    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(Figure, "savefig", nothing)
