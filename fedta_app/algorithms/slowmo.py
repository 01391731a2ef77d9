r"""SlowMo: momentum on the server that keeps gradients, whatever the learning rate was.

Wang et al., "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum", ICLR
2020, arXiv 1910.00643, Algorithm 1. With :math:`\Delta` the mean update of the round,
:math:`\gamma` its local learning rate and :math:`\alpha` the server's,

.. math::

    u \leftarrow \beta u - \Delta / \gamma, \qquad w \leftarrow w - \alpha \gamma u

With a constant rate this is FedAvgM. Under a schedule FedAvgM moves on by the long updates of
earlier rounds when the rate has fallen, and SlowMo by their gradients at the rate of now. Clients
begin each round with momentum 0 of their own (the paper's "reset").
"""

from dataclasses import dataclass
from typing import ClassVar

from fedta_app.algorithms.base import Move, Total, Vectors
from fedta_app.algorithms.fedopt import FedAvgM


@dataclass(frozen=True)
class SlowMo(FedAvgM):
    """See the module. With beta = 0 and a server learning rate of 1 this is FedAvg, bit for bit.

    Attributes
    ----------
    server_momentum : float
        beta, 0.4 to 0.8 in the paper.
    server_lr : float
        alpha; 0 stands for 1.
    coverage_exponent : float
        See `MaskedFedAvg`; read only where clients have masks of their own. An entry that nobody
        trained in a round keeps its momentum and does not move.
    """

    name: ClassVar[str] = "slowmo"

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Add the mean update in units of the rate to the momentum, and move along it."""
        if not self.server_momentum:
            return super().step(state, total, server_round)
        gradient = total._replace(mean=total.mean.div_(total.lr))
        move, state = super().step(state, gradient, server_round)
        return Move(move.direction, move.scale * total.lr), state
