"""Train the weights that the model's output is most sensitive to: the opposite of TaLoS."""

from fedta_app.masks.rule import MaskRule

RULE = MaskRule("most-sensitive", largest_first=True)
