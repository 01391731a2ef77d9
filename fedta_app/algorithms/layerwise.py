r"""LARS and LAMB on the server: each tensor moves by a share of its own length.

LARS: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv
1708.03888, Algorithm 1. LAMB: You et al., "Large Batch Optimization for Deep Learning: Training
BERT in 76 minutes", ICLR 2020, arXiv 1904.00962, Algorithm 2. As in `fedta_app.algorithms.fedopt`
the mean update :math:`\Delta` of a round is the (negative) gradient. For the entries :math:`w_l` of
tensor l,

.. math::

    v_l &\leftarrow \beta v_l + \frac{\eta_t \lVert w_l \rVert}{\lVert \Delta_l \rVert} \Delta_l,
    \qquad w_l \leftarrow w_l + \eta_g v_l \quad\text{(LARS)} \\
    r_l &= \frac{m_l / (1 - \beta_1^t)}{\sqrt{v_l / (1 - \beta_2^t)} + \epsilon},
    \qquad w_l \leftarrow w_l + \eta_g \frac{\lVert w_l \rVert}{\lVert r_l \rVert} r_l
    \quad\text{(LAMB)}

where m and v of LAMB are Adam's, from 0, and t is the round, or where clients have masks of their
own the number of rounds in which somebody trained the entry. The norms are over the entries that
travel, not over the frozen ones, which are a constant. As is usual, tensors of one dimension
(biases and normalisation) and those where a norm is 0 keep their step: their factor is 1.

*Weight decay* is the clients' own, and part of :math:`\Delta`. *Masks of clients' own*: an entry
that nobody trained in a round keeps its moments and does not move.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedta_app.algorithms.base import Move, Total, Vectors
from fedta_app.algorithms.coverage import keep_untrained
from fedta_app.algorithms.fedopt import FedAvgM, ServerOptimizer
from fedta_app.vectors.arithmetic import squared_norm

_EPSILON = 1e-6  # of LAMB, as in its paper


def _scaled(vector: Tensor, total: Total, factor: Callable[[float, float], float]) -> Tensor:
    """Return the vector with each tensor's part times factor(norm of the weights, norm of it)."""
    assert total.start is not None, "the caller of `step` adds it"
    sizes = [segment.size for segment in total.segments]
    parts, weights = vector.split(sizes), total.start.split(sizes)
    for part, own, segment in zip(parts, weights, total.segments, strict=True):
        norms = math.sqrt(squared_norm(own)), math.sqrt(squared_norm(part))
        if segment.dims > 1 and all(norms):
            part.mul_(factor(*norms))
    return vector


@dataclass(frozen=True)
class FedLars(FedAvgM):
    """LARS: see the module. Without a trust coefficient it is FedAvgM, bit for bit.

    Attributes
    ----------
    server_trust : float
        eta_t, at least 0; with 0 every factor is 1.
    server_momentum : float
        beta.
    server_lr : float
        eta_g; 0 stands for 1.
    """

    name: ClassVar[str] = "fedlars"
    server_trust: float = 0.001

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Add the mean update, at the length of the weights, to the momentum; move along it."""
        if self.server_trust:
            _scaled(total.mean, total, lambda weights, mean: self.server_trust * weights / mean)
        return super().step(state, total, server_round)


@dataclass(frozen=True)
class FedLamb(ServerOptimizer):
    """LAMB: see the module.

    Attributes
    ----------
    server_beta1, server_beta2 : float
    server_lr : float
        eta_g; 0 stands for 0.001, by which share of its length a tensor then moves.
    """

    name: ClassVar[str] = "fedlamb"
    default_lr: ClassVar[float] = 0.001
    server_beta1: float = 0.9
    server_beta2: float = 0.99

    def init(self, num_entries: int, holders: Tensor | None = None) -> Vectors:
        """Start both moments at 0, and the rounds of each entry where clients train others."""
        zero = torch.zeros(num_entries)
        moments = {"first_moment": zero, "second_moment": zero.clone()}
        return moments if holders is None else {**moments, "rounds": zero.clone()}

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Update both moments and move by their ratio, at the length of the weights."""
        old_m = state["first_moment"]
        old_v = state["second_moment"]
        m = keep_untrained(old_m.lerp(total.mean, 1 - self.server_beta1), old_m, total)
        squares = total.mean.square_()
        v = keep_untrained(old_v.lerp(squares, 1 - self.server_beta2), old_v, total)
        kept = {"first_moment": m, "second_moment": v}
        rounds: int | Tensor = server_round
        if "rounds" in state:
            old = state["rounds"]
            kept["rounds"] = keep_untrained(old + 1, old, total)
            rounds = kept["rounds"].clamp(min=1)  # of those that have none, nothing is left below
        spread = v.div(1 - self.server_beta2**rounds).sqrt_().add_(_EPSILON)
        ratio = m.div(1 - self.server_beta1**rounds).div_(spread)
        ratio = keep_untrained(ratio, None, total)  # before its length is measured
        _scaled(ratio, total, lambda weights, length: weights / length)
        return Move(ratio, self.server_lr or self.default_lr), kept
