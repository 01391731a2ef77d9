r"""A bound on the length of every client's update, before any algorithm adds it up.

An update u longer than the bound C is shortened to it: :math:`u \min(1, C / \lVert u \rVert)`.
One client then moves the mean by at most C times its weight, however long the vector is that it
sends (Sun et al., "Can You Really Backdoor Federated Learning?", 2019, arXiv 1911.07963). q-FFL,
in which clients say what they weigh, is therefore refused.
The bound is a number, or a multiple of the median of the norms of the round, which a minority of
clients cannot move far, and which follows the learning rate.
"""

import math
from statistics import median

from fedta_app.algorithms.base import Accumulator, Reply, Total
from fedta_app.vectors.arithmetic import squared_norm


class BoundedUpdates:
    """An accumulator that shortens updates before another one adds them up.

    Parameters
    ----------
    inner : Accumulator
        Of the algorithm.
    bound : float
        The longest norm, or with `by_median` its multiple of the median norm of the round.
    by_median : bool
        All updates of the round are then kept until its end.
    """

    def __init__(self, inner: Accumulator, bound: float, *, by_median: bool) -> None:
        self._inner = inner
        self._bound = bound
        self._by_median = by_median
        self._kept: list[tuple[Reply, float]] = []

    def add(self, reply: Reply) -> None:
        """Take one client's reply."""
        norm = math.sqrt(squared_norm(reply.update))
        if self._by_median:
            self._kept.append((reply._replace(update=reply.update.clone()), norm))
        else:
            self._inner.add(_shortened(reply, norm, self._bound))

    def result(self) -> Total:
        """Return the combined replies."""
        if self._kept:
            bound = self._bound * median(norm for _, norm in self._kept)
            for reply, norm in self._kept:
                self._inner.add(_shortened(reply, norm, bound))
            self._kept = []
        return self._inner.result()


def _shortened(reply: Reply, norm: float, bound: float) -> Reply:
    """Return a reply whose update, of this norm, is no longer than the bound."""
    return reply if norm <= bound else reply._replace(update=reply.update * (bound / norm))
