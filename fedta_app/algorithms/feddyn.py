r"""FedDyn: a pull towards the global weights, whose sum over clients vanishes at the optimum.

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv 2111.04263,
Algorithm 1. With x the global weights, :math:`\alpha` the pull, and vectors :math:`g_k` of client k
and h of the server, both 0 at first, client k minimises

.. math::

    F_k(w) - \langle g_k, w \rangle + \frac{\alpha}{2} \lVert w - x \rVert^2

by its local steps, which end at :math:`w_k`. With S the clients of the round and N all clients,

.. math::

    g_k &\leftarrow g_k - \alpha \, (w_k - x) \\
    h &\leftarrow h - \frac{\alpha}{N} \sum_{k \in S} (w_k - x) \\
    x &\leftarrow x + \frac{1}{|S|} \sum_{k \in S} (w_k - x) - \frac{h}{\alpha}

The clients in S weigh 1 each. h is the mean of all :math:`g_k`, and both follow from the updates:
nothing travels that FedAvg does not send. At a fixed point every client ends where it began, with
its own gradient as :math:`g_k`, and their mean is 0: that is the optimum of the mean loss, whatever
the number of local steps and their momentum.

*Weight decay* is part of :math:`F_k`. *Masks of clients' own*: entry j of h is the mean over the
clients that train it, and an entry that nobody trained in a round does not move. If a client loses
its :math:`g_k`, it goes on from 0, while h keeps the lost share.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedta_app.algorithms.base import (
    Accumulator,
    Algorithm,
    Correction,
    LocalRule,
    MeanOfReplies,
    Move,
    Total,
    Vectors,
)
from fedta_app.algorithms.coverage import add_to_mean_of_all, keep_untrained
from fedta_app.errors import ConfigError
from fedta_app.vectors.arithmetic import blocks


class _Regularised(LocalRule):
    """Steps with the gradient g - g_k + alpha (w - x)."""

    def __init__(self, pull: float, start: Tensor, gradient: Tensor | None) -> None:
        shift = None if gradient is None else gradient.neg_()
        self.correction: Correction = Correction(pull=pull, centre=start, shift=shift)

    def finish(self, update: Tensor, steps: int, lr: float) -> tuple[Vectors, Vectors]:
        """Send nothing besides the update; keep g_k - alpha (w_k - x)."""
        pull, shift = self.correction.pull, self.correction.shift
        if shift is None:
            return {}, {"gradient": update * -pull}
        for kept, moved in blocks(shift, update):
            torch.sub(moved * -pull, kept, out=kept)
        return {}, {"gradient": shift}


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """See the module. Where `g_k` and h are held at 0, it is FedProx with clients that weigh 1.

    Attributes
    ----------
    num_clients : int
        N, all clients.
    pull : float
        alpha, above 0. The smaller it is, the longer the steps of the server.

    Raises
    ------
    ConfigError
        When the pull is 0, by which the server would divide.
    """

    name: ClassVar[str] = "feddyn"
    sequential: ClassVar[bool] = False
    mirrored: ClassVar[bool] = True
    num_clients: int = 1
    pull: float = 0.01

    def __post_init__(self) -> None:
        if not self.pull > 0:
            raise ConfigError(
                f"pull = {self.pull:g} is not allowed with strategy = 'feddyn': pull is above 0 "
                "there, because the server divides by it"
            )

    def init(self, num_entries: int, holders: Tensor | None = None) -> Vectors:
        """Keep how many clients train each entry, where that is not all of them."""
        return {} if holders is None else {"holders": holders.float()}

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Pull towards the weights that training starts from, less the client's own gradient."""
        return _Regularised(self.pull, start, memory.get("gradient"))

    def accumulator(self) -> Accumulator:
        """Return the mean over those who trained an entry, every client weighing 1."""
        return MeanOfReplies(1.0, by_examples=False)

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Move by the mean update minus h / alpha."""
        old = state.get("gradient", torch.zeros_like(total.mean))
        change = total.mean * -self.pull
        holders = state.get("holders")
        gradient = add_to_mean_of_all(old, change, total, self.num_clients, holders)
        move = keep_untrained(total.mean.sub_(gradient, alpha=1 / self.pull), None, total)
        kept = {} if holders is None else {"holders": holders}
        return Move(move), {**kept, "gradient": gradient}
