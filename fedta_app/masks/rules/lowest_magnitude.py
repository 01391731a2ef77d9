"""Train the weights with the smallest absolute values: a control that needs no data."""

from fedta_app.masks.rule import MaskRule, by_magnitude

RULE = MaskRule("lowest-magnitude", by_magnitude, needs_scores=False)
