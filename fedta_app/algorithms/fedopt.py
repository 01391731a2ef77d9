r"""Server optimisers: the mean update of a round is a gradient for an optimiser on the server.

FedAvgM: Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification", 2019, arXiv 1909.06335. SlowMo: Wang et al., "SlowMo: Improving
Communication-Efficient Distributed SGD with Slow Momentum", ICLR 2020, arXiv 1910.00643,
Algorithm 1. FedAdagrad, FedAdam, FedYogi: Reddi et al., "Adaptive Federated Optimization", ICLR
2021, arXiv 2003.00295, Algorithm 2. With :math:`\Delta` the mean update, :math:`\eta_g` the
server's learning rate:

.. math::

    m &\leftarrow \beta_1 m + (1 - \beta_1) \Delta \\
    v &\leftarrow v + \Delta^2 \quad\text{(Adagrad)} \\
    v &\leftarrow \beta_2 v + (1 - \beta_2) \Delta^2 \quad\text{(Adam)} \\
    v &\leftarrow v - (1 - \beta_2) \Delta^2 \operatorname{sign}(v - \Delta^2) \quad\text{(Yogi)} \\
    w &\leftarrow w + \eta_g \, m / (\sqrt{v} + \tau)

As in the paper there is no bias correction, and v starts at tau^2. (Flower's FedAdam corrects the
bias, with the exponent `round + 1`; its FedAdagrad and FedYogi start v at 0.)

Where clients have masks of their own, an entry that nobody trained in a round keeps its m and v and
does not move: old momentum would otherwise move a weight that no client trained.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedta_app.algorithms.base import Move, Total, Vectors
from fedta_app.algorithms.coverage import keep_untrained
from fedta_app.algorithms.fedavg import MaskedFedAvg


@dataclass(frozen=True)
class ServerOptimizer(MaskedFedAvg):
    """What server optimisers share: the mean of `MaskedFedAvg`, and the step length.

    Attributes
    ----------
    server_lr : float
        0 stands for `default_lr`.
    """

    default_lr: ClassVar[float] = 1.0
    server_lr: float = 0.0

    def _move(self, direction: Tensor, total: Total) -> Move:
        return Move(keep_untrained(direction, None, total), self.server_lr or self.default_lr)


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """Momentum on the server: v <- beta v + mean update, w <- w + server_lr v.

    With beta = 0 and a server learning rate of 1 this is FedAvg, bit for bit.
    """

    name: ClassVar[str] = "fedavgm"
    server_momentum: float = 0.9

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Add the mean update to the momentum, and move along it."""
        if not self.server_momentum:
            return self._move(total.mean, total), {}
        velocity, old = total.mean, None
        if "velocity" in state:
            old = state["velocity"]
            velocity = torch.add(total.mean, old, alpha=self.server_momentum)
        velocity = keep_untrained(velocity, old, total)
        return self._move(velocity, total), {"velocity": velocity}


@dataclass(frozen=True)
class SlowMo(FedAvgM):
    r"""Momentum on the server that keeps gradients, whatever the learning rate was.

    With :math:`\Delta` the mean update of the round, :math:`\gamma` its local learning rate and
    :math:`\alpha` the server's,

    .. math::

        u \leftarrow \beta u - \Delta / \gamma, \qquad w \leftarrow w - \alpha \gamma u

    With a constant rate this is FedAvgM. Under a schedule FedAvgM moves on by the long updates of
    earlier rounds when the rate has fallen, and SlowMo by their gradients at the rate of now.
    Clients begin each round with momentum 0 of their own (the paper's "reset"). With beta = 0 (the
    paper: 0.4 to 0.8) and a server learning rate of 1 this is FedAvg, bit for bit.
    """

    name: ClassVar[str] = "slowmo"

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Add the mean update in units of the rate to the momentum, and move along it."""
        if not self.server_momentum:
            return super().step(state, total, server_round)
        gradient = total._replace(mean=total.mean.div_(total.lr))
        move, state = super().step(state, gradient, server_round)
        return Move(move.direction, move.scale * total.lr), state


@dataclass(frozen=True)
class _Adaptive(ServerOptimizer):
    """The adaptive server optimisers; they differ in the second moment."""

    default_lr: ClassVar[float] = 0.001
    server_beta1: float = 0.9
    server_tau: float = 0.001

    @abstractmethod
    def second_moment(self, v: Tensor, squares: Tensor) -> Tensor:
        """Return the new v, for the squares of the mean update."""

    def init(self, num_entries: int, holders: Tensor | None = None) -> Vectors:
        """Start m at 0 and v at tau^2."""
        v = torch.full((num_entries,), self.server_tau**2)
        return {"first_moment": torch.zeros(num_entries), "second_moment": v}

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Update both moments and move by their ratio."""
        old_m = state["first_moment"]
        old_v = state["second_moment"]
        m = old_m.lerp(total.mean, 1 - self.server_beta1)
        v = self.second_moment(old_v, total.mean.square())
        m, v = keep_untrained(m, old_m, total), keep_untrained(v, old_v, total)
        move = self._move(m / (v.sqrt() + self.server_tau), total)
        return move, {"first_moment": m, "second_moment": v}


@dataclass(frozen=True)
class FedAdagrad(_Adaptive):
    """Adagrad on the server: v sums the squares. The paper's beta1 is 0."""

    name: ClassVar[str] = "fedadagrad"

    def second_moment(self, v: Tensor, squares: Tensor) -> Tensor:
        """Return v + squares."""
        return v + squares


@dataclass(frozen=True)
class FedAdam(_Adaptive):
    """Adam on the server: v is an exponential mean of the squares."""

    name: ClassVar[str] = "fedadam"
    server_beta2: float = 0.99

    def second_moment(self, v: Tensor, squares: Tensor) -> Tensor:
        """Return beta2 v + (1 - beta2) squares."""
        return v.lerp(squares, 1 - self.server_beta2)


@dataclass(frozen=True)
class FedYogi(_Adaptive):
    """Yogi on the server: v moves towards the squares by steps of the squares' own size."""

    name: ClassVar[str] = "fedyogi"
    server_beta2: float = 0.99

    def second_moment(self, v: Tensor, squares: Tensor) -> Tensor:
        """Return v - (1 - beta2) squares sign(v - squares)."""
        return v - (1 - self.server_beta2) * squares * torch.sign(v - squares)
