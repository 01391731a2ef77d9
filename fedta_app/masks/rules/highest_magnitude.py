"""Train the weights with the largest absolute values: a control that needs no data."""

from fedta_app.masks.rule import MaskRule, by_magnitude

RULE = MaskRule("highest-magnitude", by_magnitude, largest_first=True, needs_scores=False)
