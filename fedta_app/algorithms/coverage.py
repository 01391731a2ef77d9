"""What a server's state becomes where clients have masks of their own, entry by entry."""

import torch
from torch import Tensor

from fedta_app.algorithms.base import Total


def keep_untrained(new: Tensor, old: Tensor | None, total: Total) -> Tensor:
    """Return `new` where somebody trained an entry in this round, else `old` (None: zero)."""
    if total.coverage is None:
        return new
    return torch.where(total.coverage > 0, new, torch.zeros_like(new) if old is None else old)


def add_to_mean_of_all(
    mean: Tensor, change: Tensor, total: Total, num_clients: int, holders: Tensor | None
) -> Tensor:
    """Return a mean over all clients, after those of the round changed theirs by `change` each.

    Parameters
    ----------
    mean, change : Tensor of shape (P,)
        The mean over all clients so far, and the mean change over the clients of the round; with
        masks of clients' own, entry by entry over those who train it.
    num_clients : int
        All clients.
    holders : Tensor of shape (P,) or None
        How many of all clients train each entry, where they have masks of their own.
    """
    if total.coverage is None or holders is None:
        return mean.add(change, alpha=total.clients / num_clients)
    return mean.addcmul(change, total.coverage / holders.to(change).clamp(min=1))
