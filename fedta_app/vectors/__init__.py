"""The one tensor algebra: weights as one flat vector, masks over it, packed values."""

from fedta_app.vectors.flat import FlatWeights, weights_sha256
from fedta_app.vectors.mask import FlatMask

__all__ = ["FlatMask", "FlatWeights", "weights_sha256"]
