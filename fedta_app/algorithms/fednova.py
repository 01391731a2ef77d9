r"""FedNova: a client that takes more local steps does not count more.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, arXiv 2007.07481. With :math:`u_k` the update of client k in the round,
:math:`p_k = n_k / \sum_{l \in S} n_l` its share of the examples, and :math:`\lVert a_k \rVert_1`
its number of local steps, where a step with momentum counts as `fedta_app.optim.norm_of_steps`
says,

.. math::

    w \leftarrow w + \tau \sum_{k \in S} p_k \, \frac{u_k}{\lVert a_k \rVert_1}, \qquad
    \tau = \sum_{k \in S} p_k \lVert a_k \rVert_1

FedAvg sums :math:`p_k u_k`, and so weighs the gradient of a client by its examples times its steps:
for small learning rates it ends at the optimum of another loss. Where all clients of the round take
the same number of steps, this is FedAvg, bit for bit.

*Weight decay* is part of the update. *Masks of clients' own*: the mean of the normalised updates is
that of `MaskedFedAvg`, and tau is one number for all entries.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedta_app.algorithms.base import (
    Accumulator,
    MeanOfReplies,
    Move,
    Reply,
    Total,
    Vectors,
)
from fedta_app.algorithms.fedavg import MaskedFedAvg
from fedta_app.optim.effective_steps import norm_of_steps


class _Normalised:
    """The mean of the updates, each as if its client had taken as many steps as the first one.

    The first client's number is divided out, in place of 1, because equal numbers of steps then
    leave the bits of every update alone.
    """

    def __init__(self, coverage_exponent: float, momentum: float) -> None:
        self._mean = MeanOfReplies(coverage_exponent)
        self._momentum = momentum
        self._first = 0.0
        self._weighted = 0.0  # the sum of n_k |a_k| / |a_first|
        self._examples = 0

    def add(self, reply: Reply) -> None:
        norm = norm_of_steps(reply.steps, self._momentum)
        self._first = self._first or norm
        ratio = norm / self._first
        self._mean.add(reply if ratio == 1 else reply._replace(update=reply.update / ratio))
        self._weighted += reply.num_examples * ratio
        self._examples += reply.num_examples

    def result(self) -> Total:
        length = self._weighted / self._examples
        return self._mean.result()._replace(figures={"length": length})


@dataclass(frozen=True)
class FedNova(MaskedFedAvg):
    """See the module.

    Attributes
    ----------
    momentum : float
        Of the clients' SGD.
    """

    name: ClassVar[str] = "fednova"
    sequential: ClassVar[bool] = False
    momentum: float = 0.0

    def accumulator(self) -> Accumulator:
        """Return the mean of the normalised updates."""
        return _Normalised(self.coverage_exponent, self.momentum)

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Move by the mean of the normalised updates, times the effective number of steps."""
        return Move(total.mean, total.figures["length"]), state
