"""Layers that never travel: every client keeps its own.

With the head this is FedPer (Arivazhagan et al., 2019, arXiv 1912.00818), and FedRep (Collins et
al., ICML 2021, arXiv 2102.07078) where the head is trained before the rest; with normalisation
layers FedBN (Li et al., ICLR 2021, arXiv 2102.07623); with the first layers LG-FedAvg (Liang et
al., 2020, arXiv 2001.01523).
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

import timm.layers
import torch
from torch import Tensor, nn

from fedta_app.errors import ConfigError
from fedta_app.vectors.flat import FlatWeights
from fedta_app.vectors.mask import FlatMask

# timm's RMS norms (SimpleNorm is one) do not derive from torch's.
_TIMM_NORMS = [
    kind for name, kind in vars(timm.layers).items() if name.startswith(("RmsNorm", "SimpleNorm"))
]
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *_TIMM_NORMS)


class Split(NamedTuple):
    """The trained entries of a vector (N,): those that travel, and those that stay."""

    travelling: FlatMask
    own: FlatMask


class PersonalLayers:
    """Tensors of a model that each client keeps for itself.

    Parameters
    ----------
    names : frozenset of str
        The tensors, of `weights`.
    weights : FlatWeights
        With the values that every client starts from.

    Attributes
    ----------
    names : frozenset of str
    split : callable
        Given the mask of the trained entries (None: all), returns their `Split`.
    """

    def __init__(self, names: frozenset[str], weights: FlatWeights) -> None:
        self.names = names
        mask = torch.zeros_like(weights.vector, dtype=torch.bool)
        for name, view in weights.views(mask).items():
            view.fill_(name in names)
        self._all = FlatMask(mask)
        self._start = self._all.gather(weights.vector)
        # A few, because clients may have masks of their own, whose indices take memory.
        self.split: Callable[[FlatMask | None], Split] = lru_cache(maxsize=2)(self._split)

    def _split(self, trained: FlatMask | None) -> Split:
        if trained is None:
            return Split(FlatMask(~self._all.mask), self._all)
        return Split(
            FlatMask(trained.mask & ~self._all.mask), FlatMask(trained.mask & self._all.mask)
        )

    def load(self, vector: Tensor, trained: FlatMask | None, own: Tensor | None) -> None:
        """Write a client's layers into a vector (N,); what it has not trained is as at the start.

        Parameters
        ----------
        trained : FlatMask or None
            The entries that the client trains.
        own : Tensor of shape (Q,) or None
            Those of them that are personal, packed; None before the client has trained.
        """
        self._all.scatter_(vector, self._start)
        if own is not None:
            self.split(trained).own.scatter_(vector, own.to(vector.device))


def personal_layers(
    patterns: str, model: nn.Module, weights: FlatWeights, *, head: str
) -> PersonalLayers | None:
    """Return the layers that the key `personal-layers` names, None for "none".

    Parameters
    ----------
    patterns : str
        "head" (the model's head), "norm" (the affine parameters of LayerNorm, GroupNorm and
        RMSNorm, and of timm's own), or names of tensors with the wildcards of file names,
        separated by commas.
    weights : FlatWeights
        The parameters of the model that are trained.
    head : str
        Name of the head.

    Raises
    ------
    ConfigError
        Where a pattern matches no weight that is trained, or where all are matched.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> weights = FlatWeights(model, [name for name, _ in model.named_parameters()])
    >>> sorted(personal_layers("norm, 2.b*", model, weights, head="2").names)
    ['1.bias', '1.weight', '2.bias']
    """
    if patterns == "none":
        return None
    refusal = f"personal-layers = {patterns!r} is not allowed with this model: "
    norms = {
        f"{layer}.{name}"
        for layer, module in model.named_modules()
        if isinstance(module, _NORMS)
        for name, _ in module.named_parameters(recurse=False)
    }
    found: set[str] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        matched = {
            name
            for name in weights.names
            if (name.startswith(f"{head}.") if pattern == "head" else fnmatchcase(name, pattern))
            or (pattern == "norm" and name in norms)
        }
        if not matched:
            raise ConfigError(
                f"{refusal}{pattern!r} matches none of the weights that are trained, which are "
                f"called {weights.names[0]!r} and so on; write head, norm or names with *, "
                "separated by commas"
            )
        found |= matched
    if found == set(weights.names):
        raise ConfigError(f"{refusal}all weights that are trained match, and none would travel")
    return PersonalLayers(frozenset(found), weights)
