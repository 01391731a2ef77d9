"""The one tensor algebra: weights as one flat vector, and masks over it."""

from fedta_app.vectors.arithmetic import blocks, stepped
from fedta_app.vectors.flat import FlatWeights, weights_sha256
from fedta_app.vectors.layout import Layout
from fedta_app.vectors.mask import FlatMask

__all__ = ["FlatMask", "FlatWeights", "Layout", "blocks", "stepped", "weights_sha256"]
