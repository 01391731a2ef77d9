"""Tables of experiments: what they are, how they are run, and what they say.

`running` runs cells (a preset and a seed) and plans and tunes them, `reporting` makes tables and
figures of finished ones, `pretraining` made the weights that come with fedta, and `studies` answers
single questions. The presets are in `tables`. `python -m experiments` is the command line.
"""

from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"  # the records that are committed
