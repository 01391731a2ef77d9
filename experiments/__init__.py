"""Tables of experiments: what they are, how they are run, and what they say.

`running` runs cells (a preset and a seed) and plans and tunes them, `reporting` makes tables and
figures of finished ones, `pretraining` made the weights that come with fedta, and `studies` answers
single questions. The presets are in `tables`. `python -m experiments` is the command line.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = any(ROOT.glob("fedta-*.dist-info"))  # by pip, from a wheel: nothing is written to ROOT
# The records that are committed; away from a checkout, those of the working directory.
RESULTS = (Path.cwd() if INSTALLED else ROOT) / "results"
