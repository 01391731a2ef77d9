r"""The gradient noise scale: how large a batch is worth its images.

McCandlish et al., "An Empirical Model of Large-Batch Training", 2018, arXiv 1812.06162, appendix
A.1. With G the gradient over all images and S the trace of the covariance of one image's, a mini-
batch of b images has :math:`E|g_b|^2 = |G|^2 + S / b`. A round with one local step shows both sizes
for free: each client's update has its own batch, and their mean has all of them. With m clients of
batches :math:`b_k` and :math:`h = \frac{1}{m} \sum_k 1 / b_k`

.. math::

    \tfrac1m \sum_k |u_k|^2 \approx |G|^2 + h S, \qquad |\bar u|^2 \approx |G|^2 + \tfrac{h}{m} S,

where :math:`u_k` is the update over the round's learning rate. They are solved for :math:`|G|^2`
and S. Both are smoothed over rounds, as the paper does, before they give :math:`B = S / |G|^2`.
Where clients' data differ, so do their gradients, and S counts that as noise.
"""

from typing import Any

import torch
from torch import Tensor

from fedta_app.vectors.arithmetic import squared_norm

_SMOOTHING = 0.9  # the share of the estimates so far in the next ones


class NoiseScale:
    """The batch size of the next round, from the updates of those before.

    Parameters
    ----------
    batch_size : int
        Of the first rounds.
    every : int
        The rounds after which the batch size is set anew, to the noise scale.
    sizes : sequence of int
        How many images each client has; no batch is larger.
    most : int
        The largest batch size; 0 for that of the largest client.

    Examples
    --------
    Two clients that agree leave no noise, so that a batch of one image is enough.

    >>> rule = NoiseScale(8, every=1, sizes=[100, 100])
    >>> for client in (0, 1):
    ...     rule.watch(client, torch.tensor([0.1, -0.2]), None)
    >>> rule.end_round(lr=0.1)
    >>> rule.batch_size
    1
    """

    def __init__(self, batch_size: int, every: int, sizes: list[int], most: int = 0) -> None:
        self._every, self._sizes = every, sizes
        self._most = most or max(sizes)
        self.batch_size = batch_size
        self._rounds = 0
        self._signal = self._noise = 0.0  # smoothed |G|^2 and S
        self.begin()

    @property
    def scale(self) -> float:
        """B, the noise over the squared gradient; infinity where only noise is left."""
        return max(0.0, self._noise) / self._signal if self._signal > 0 else float("inf")

    def begin(self) -> None:
        """Forget the updates of a round: it begins, perhaps for the second time."""
        self._sum: Tensor | None = None
        self._squares, self._inverse, self._seen = 0.0, 0.0, 0

    def watch(self, partition_id: int, update: Tensor, trained: Tensor | None) -> None:
        """Take a client's update (P,)."""
        self._sum = (
            update.to(torch.float64, copy=True) if self._sum is None else self._sum.add_(update)
        )
        self._squares += squared_norm(update)
        self._inverse += 1 / min(self.batch_size, self._sizes[partition_id])
        self._seen += 1

    def end_round(self, lr: float) -> None:
        """Estimate from the round's updates, of which there must be two; set the batch size.

        Parameters
        ----------
        lr : float
            The learning rate of the round: without it, rounds of a high rate would outweigh those
            of a lower one for a long time.
        """
        clients, total = self._seen, self._sum
        self._rounds += 1
        if total is not None and clients > 1:
            small, inverse = self._squares / lr**2 / clients, self._inverse / clients
            large = squared_norm(total / lr / clients)
            noise = (small - large) / (inverse * (1 - 1 / clients))
            self._noise = self._smoothed(self._noise, noise)
            self._signal = self._smoothed(self._signal, small - inverse * noise)
        self.begin()
        if self._rounds % self._every == 0 and (self._noise or self._signal):
            self.batch_size = max(1, round(min(self.scale, self._most)))

    def _smoothed(self, before: float, found: float) -> float:
        # Both start at 0, which the quotient of the two does not see.
        return _SMOOTHING * before + (1 - _SMOOTHING) * found

    def state_dict(self) -> dict[str, Any]:
        """Return the batch size and the smoothed estimates."""
        return {
            "batch-size": self.batch_size,
            "rounds": self._rounds,
            "signal": self._signal,
            "noise": self._noise,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.batch_size, self._rounds = int(state["batch-size"]), int(state["rounds"])
        self._signal, self._noise = float(state["signal"]), float(state["noise"])
