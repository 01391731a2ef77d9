"""Tables of experiments: what they are, how they are run, and what they say.

`running` runs cells (a preset and a seed) and plans and tunes them, `reporting` makes tables and
figures of finished ones, `pretraining` made the weights that come with fedta, and `studies` answers
single questions. The presets are in `tables`. `python -m experiments` is the command line.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedta_app.finished.reading import Run

__all__ = ["RESULTS", "load_run"]

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = any(ROOT.glob("fedta-*.dist-info"))  # by pip, from a wheel: nothing is written to ROOT
# The records that are committed; away from a checkout, those of the working directory.
RESULTS = (Path.cwd() if INSTALLED else ROOT) / "results"


def load_run(path: str | Path, *, unfinished: bool = False) -> "Run":
    """Return the run in a directory: configuration, metrics, summary, mask and models.

    Parameters
    ----------
    path : str or Path
        The directory that the run printed, `<results-dir>/<name>/seed<seed>`.
    unfinished : bool
        Also return a run that was stopped, killed or failed, or is running.

    Returns
    -------
    Run
        With `config`, `metrics`, `summary`, `final`, `best`, `mask`, `kept(...)`, `model(...)`.

    Raises
    ------
    RunError
        When the directory holds no run, one that is not finished, or a damaged one.
    """
    from fedta_app.finished import reading  # imports torch, which help and list do without

    return reading.load_run(path, unfinished=unfinished)
