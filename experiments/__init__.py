"""Tables of experiments: what they are, how they are run, and what they say.

`running` runs cells (a preset and a seed) and plans and tunes them, `reporting` makes tables and
figures of finished ones, `pretraining` made the weights that come with fedta, and `studies` answers
single questions. The presets are in `tables`. `python -m experiments` is the command line.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedta_app.finished.reading import load_run

__all__ = ["RESULTS", "load_run"]

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = any(ROOT.glob("fedta-*.dist-info"))  # by pip, from a wheel: nothing is written to ROOT
# The records that are committed; away from a checkout, those of the working directory.
RESULTS = (Path.cwd() if INSTALLED else ROOT) / "results"


def __getattr__(name: str) -> Any:
    """Import `load_run` when it is asked for: it needs torch, which help and list do without."""
    if name == "load_run":
        from fedta_app.finished.reading import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
