r"""q-FFL: clients with a large loss count more, so that accuracy is spread more evenly.

Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv 1905.10497,
Algorithm 2 (q-FedAvg). It minimises :math:`\sum_k p_k F_k(w)^{q+1} / (q + 1)`. With :math:`F_k` the
loss of client k at the global weights, :math:`u_k` its update and :math:`\eta` its learning rate,

.. math::

    w \leftarrow w + \frac{\sum_{k \in S} n_k F_k^q u_k / \eta}{\sum_{k \in S} n_k h_k}, \qquad
    h_k = q F_k^{q-1} \lVert u_k / \eta \rVert^2 + F_k^q / \eta

Clients are sampled uniformly and weighed by their examples :math:`n_k`, as FedAvg does here; the
paper samples by examples and weighs uniformly. With q = 0 this is FedAvg, bit for bit.

*Cost*: a client evaluates its images, without augmentation, before it trains: one forward pass more
over all of them in each round. Its loss, one number, travels with its reply. *Masks of clients'
own*: entry by entry, the sums are over those who trained it.
"""

import math
import sys
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedta_app.algorithms.base import (
    Accumulator,
    LocalRule,
    MeanOfReplies,
    Reply,
    Total,
    Vectors,
)
from fedta_app.algorithms.fedavg import MaskedFedAvg
from fedta_app.vectors.arithmetic import squared_norm

_LEAST = 1e-10  # of a loss: 0 to the power of q - 1 would be infinite
# An example's weight where n_k h_k is largest, and the least that there is: their sums are float32.
_MOST, _SMALLEST = 1e25, 1e-35


class _Fair:
    """The step of the paper as a weighted mean.

    Times eta, h_k is F^(q-1) (F + q |u|^2 / eta). So the step is the mean, by n_k h_k, of the
    updates times F / (F + q |u|^2 / eta). Weights are in units of the largest h so far, whichever
    client has it. Where clients have masks of their own, ratios above 1e60 are cut to that.
    """

    def __init__(self, coverage_exponent: float, fairness: float) -> None:
        self._mean = MeanOfReplies(coverage_exponent)
        self._q = fairness
        self._largest = -math.inf  # log h_k of the replies so far

    def add(self, reply: Reply) -> None:
        loss = max(reply.start_loss, _LEAST)
        longer = loss + self._q * squared_norm(reply.update) / reply.lr
        longer = min(longer, sys.float_info.max)
        # A power of the loss may be too large or too small for a float, and its logarithm is not.
        log_h = (self._q - 1) * math.log(loss) + math.log(longer)
        if log_h > self._largest:
            self._mean.scale_weights(math.exp(self._largest - log_h))
            self._largest = log_h
        share = max(_MOST * math.exp(log_h - self._largest), _SMALLEST)
        update = reply.update * (loss / longer)
        self._mean.add(reply._replace(update=update), reply.num_examples * share)

    def result(self) -> Total:
        return self._mean.result()


@dataclass(frozen=True)
class QFFL(MaskedFedAvg):
    """See the module.

    Attributes
    ----------
    fairness : float
        q, at least 0; 0.001 to 10 in the paper.
    """

    name: ClassVar[str] = "q-ffl"
    sequential: ClassVar[bool] = False
    fairness: float = 1.0

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Ask for the loss at the start."""
        return LocalRule(wants_start_loss=self.fairness > 0)

    def accumulator(self) -> Accumulator:
        """Return the mean in which a client weighs by its loss."""
        if not self.fairness:
            return super().accumulator()
        return _Fair(self.coverage_exponent, self.fairness)
