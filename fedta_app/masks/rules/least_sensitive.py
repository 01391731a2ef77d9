"""Train the weights that the model's output is least sensitive to.

The rule of TaLoS (Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620, section 4): fine-tuning
these changes what the model does on other tasks least.
"""

from fedta_app.masks.rule import MaskRule

RULE = MaskRule("least-sensitive")
