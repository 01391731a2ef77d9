"""The weights that travel, as one contiguous vector that the model's parameters are views of.

Loading a round's weights is then one copy, and an update one subtraction, whatever the number of
tensors; nothing is gathered, concatenated or serialised tensor by tensor.
"""

import hashlib

import torch
from torch import Tensor, nn

from fedta_app.vectors.layout import Layout


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
    layout : Layout
        Where each parameter lies in the vector.
    vector : Tensor of shape (N,)
        Shares memory with the parameters: write to one and the other follows.
    """

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        parameters = {name: model.get_parameter(name) for name in names}
        self.layout = Layout.of(parameters)
        first = parameters[names[0]]
        self.vector = torch.empty(self.layout.size, dtype=first.dtype, device=first.device)
        for name, view in self.layout.views(self.vector).items():
            view.copy_(parameters[name].data)
            parameters[name].data = view

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters, in the order of the vector."""
        return self.layout.names

    @property
    def fingerprint(self) -> str:
        """See `Layout.fingerprint`."""
        return self.layout.fingerprint

    def views(self, vector: Tensor) -> dict[str, Tensor]:
        """Split a vector of this layout into named views of the parameters' shapes."""
        return self.layout.views(vector)

    def load(self, vector: Tensor) -> None:
        """Copy a vector of this layout into the model, in place."""
        self.vector.copy_(vector)


def weights_sha256(vector: Tensor) -> str:
    """Return the sha256 of a vector's bytes: equal only when every weight has equal bits."""
    return hashlib.sha256(vector.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def weights_and_head(
    model: nn.Module, head: str, *, frozen: bool
) -> tuple[FlatWeights, FlatWeights | None]:
    """Return the weights of a model that are trained, and those of its head if that is frozen.

    Parameters
    ----------
    head : str
        Name of the module.
    """
    names = [name for name, _ in model.named_parameters()]
    if not frozen:
        return FlatWeights(model, names), None
    head_names = [name for name in names if name.startswith(f"{head}.")]
    made_first = FlatWeights(model, head_names)
    model.get_submodule(head).requires_grad_(False)
    return FlatWeights(model, [name for name in names if name not in head_names]), made_first
