"""Gradient masks: rules that rank the weights, calibration in rounds, masks of several clients.

A mask maps parameter names to boolean tensors, True where the entry is trained; density is the
trained share of the entries and sparsity = 1 - density the frozen share. Inside, masks are
`fedta_app.vectors.FlatMask` and everything is a vector (N,); only `build_mask` and `calibrate_mask`
take and return tensors by name. A new rule is a new file in `fedta_app/masks/rules`.
"""

from fedta_app.masks.rule import Entries, MaskRule, ScoreSums

# isort: split
# The files in `rules` may import the three names above from here, so they come first.
from fedta_app.masks.building import build_mask, calibrate_mask, maskable
from fedta_app.masks.calibration import Calibration, client_scores
from fedta_app.masks.rules import MASK_RULES, needs_scores, rule_named
from fedta_app.masks.selection import round_density
from fedta_app.masks.sets import intersection, union, vote

__all__ = [
    "MASK_RULES",
    "Calibration",
    "Entries",
    "MaskRule",
    "ScoreSums",
    "build_mask",
    "calibrate_mask",
    "client_scores",
    "intersection",
    "maskable",
    "needs_scores",
    "round_density",
    "rule_named",
    "union",
    "vote",
]
