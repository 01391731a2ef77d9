"""The weights that travel, as one contiguous vector that the model's parameters are views of.

Loading a round's weights is then one copy, and an update one subtraction, whatever the number of
tensors; nothing is gathered, concatenated or serialised tensor by tensor.
"""

import hashlib
import math

import torch
from torch import Tensor, nn


class FlatWeights:
    """Chosen parameters of a model, moved into one vector.

    Parameters
    ----------
    model : nn.Module
        Its chosen parameters become views of `vector`; their values do not change.
    names : list of str
        Parameters to move, in the order in which they lie in the vector.

    Attributes
    ----------
    vector : Tensor of shape (number of entries,)
        Shares memory with the parameters: write to one and the other follows.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        parameters = dict(model.named_parameters())
        self.names = names
        self.shapes = [tuple(parameters[name].shape) for name in names]
        sizes = [math.prod(shape) for shape in self.shapes]
        first = parameters[names[0]]
        self.vector = torch.empty(sum(sizes), dtype=first.dtype, device=first.device)
        for name, piece in zip(names, self.vector.split(sizes), strict=True):
            parameter = parameters[name]
            view = piece.view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data = view
        self._sizes = sizes

    @property
    def fingerprint(self) -> str:
        """Names and shapes, hashed: two processes that agree on it agree on every position."""
        text = "\n".join(f"{n} {s}" for n, s in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a vector of this layout into named views of the parameters' shapes."""
        pieces = vector.split(self._sizes)
        return {
            name: piece.view(shape)
            for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)
        }

    def load(self, vector: Tensor) -> None:
        """Copy a vector of this layout into the model, in place."""
        self.vector.copy_(vector)


def weights_sha256(vector: Tensor) -> str:
    """Return the sha256 of a vector's bytes: equal only when every weight has equal bits."""
    return hashlib.sha256(vector.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
