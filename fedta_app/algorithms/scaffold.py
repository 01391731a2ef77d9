r"""SCAFFOLD: control variates that take a client's own direction out of its steps.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
arXiv 1910.06378, Algorithm 1 with option II. With x the global weights, c the server's control and
:math:`c_k` that of client k, both 0 at first, K local steps of rate :math:`\eta` are

.. math::

    y &\leftarrow y - \eta \, (g_k(y) - c_k + c) \\
    c_k' &= c_k - c + (x - y) / (\eta \lVert a \rVert_1) \\
    x &\leftarrow x + \eta_g \frac{1}{|S|} \sum_{k \in S} (y_k - x), \qquad
    c \leftarrow c + \frac{1}{N} \sum_{k \in S} (c_k' - c_k)

The clients in S weigh 1 each; N is the number of all clients.

*One vector up.* Since :math:`c_k' - c_k = -c - \Delta_k / (\eta \lVert a \rVert_1)`, the server
derives the change of a control from the update that it gets anyway.

*Momentum.* With momentum m a client moves by :math:`\eta \sum_i a_i g_i`, with
:math:`a_i = (1 - m^{K-i}) / (1 - m)`, so the mean gradient is the update divided by
:math:`\eta \lVert a \rVert_1` (the norm of FedNova, Wang et al. 2020), which is :math:`\eta K`
without momentum. Dividing by :math:`\eta K` in spite of momentum diverges.

*Weight decay* is part of the update, so controls hold it too. With *clipping* a control is a mean
of clipped gradients. *Masks of clients' own*: entry j of c is the mean over the clients that train
it. If a client loses its control, it goes on from 0, while c keeps the lost control's share.
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
    Reply,
    Total,
    Vectors,
)
from fedta_app.algorithms.coverage import add_to_mean_of_all
from fedta_app.optim.effective_steps import norm_of_steps
from fedta_app.vectors.arithmetic import blocks


class _Controlled(LocalRule):
    """Steps with the gradient g - c_k + c; without controls yet, plain steps."""

    def __init__(self, own: Tensor | None, server: Tensor | None, momentum: float) -> None:
        self._momentum = momentum
        self._own = own
        if own is not None and server is not None:
            self._difference: Tensor | None = torch.sub(server, own, out=own)
        else:
            self._difference = server if own is None else own.neg_()
        if self._difference is not None:
            self.correction = Correction(shift=self._difference)

    def finish(self, update: Tensor, steps: int, lr: float) -> tuple[Vectors, Vectors]:
        """Keep the new control, c_k - c - update / norm."""
        divisor = -lr * norm_of_steps(steps, self._momentum)
        if self._difference is None:
            return {}, {"control": update.div(divisor)}
        control = torch.empty_like(update) if self._own is None else self._own
        for kept, moved, difference in blocks(control, update, self._difference):
            torch.sub(moved.div(divisor), difference, out=kept)
        return {}, {"control": control}


class _Gradients:
    """The mean of the updates, and the mean gradient that they stand for.

    If all clients take the same number of steps, and the mean of the updates divides by those who
    train an entry, the two means differ by a factor only, and one buffer serves for both.
    """

    def __init__(self, coverage_exponent: float, momentum: float, *, apart: bool) -> None:
        self._updates = MeanOfReplies(coverage_exponent, by_examples=False)
        self._gradients = MeanOfReplies(1.0, by_examples=False) if apart else None
        self._momentum = momentum
        self._norm = 0.0

    def add(self, reply: Reply) -> None:
        norm = reply.lr * norm_of_steps(reply.steps, self._momentum)
        self._updates.add(reply)
        if self._gradients is not None:
            self._gradients.add(reply._replace(update=reply.update / norm))
        elif self._norm not in (0.0, norm):
            raise ValueError(f"a client took {reply.steps} local steps, others another number")
        self._norm = norm

    def result(self) -> Total:
        total = self._updates.result()
        if self._gradients is None:
            gradient = total.mean / self._norm
        else:
            gradient = self._gradients.result().mean
        return total._replace(extra={"gradient": gradient})


@dataclass(frozen=True)
class Scaffold(Algorithm):
    """See the module. Round 1, which has no controls yet, is FedAvg with equal weights.

    Attributes
    ----------
    num_clients : int
        N, all clients.
    momentum : float
        Of the clients' SGD.
    server_lr : float
        0 stands for 1.
    coverage_exponent : float
        Where clients have masks of their own: 1 divides by those who train an entry, 0 by
        everybody, in the mean of the updates; controls are means over those who train an entry.
    """

    name: ClassVar[str] = "scaffold"
    sequential: ClassVar[bool] = False
    mirrored: ClassVar[bool] = True
    num_clients: int = 1
    local_steps: int = 0
    momentum: float = 0.0
    server_lr: float = 0.0
    coverage_exponent: float = 1.0

    def init(self, num_entries: int, holders: Tensor | None = None) -> Vectors:
        """Keep how many clients train each entry, where that is not all of them."""
        return {} if holders is None else {"holders": holders.float()}

    def broadcast(self, state: Vectors, server_round: int) -> Vectors:
        """Send the server's control, once there is one."""
        return {"control": state["control"]} if "control" in state else {}

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Correct every gradient by the difference of the controls."""
        return _Controlled(memory.get("control"), received.get("control"), self.momentum)

    def accumulator(self) -> Accumulator:
        """Return the mean of the updates and of the gradients, every client weighing 1."""
        apart = self.local_steps == 0 or self.coverage_exponent != 1
        return _Gradients(self.coverage_exponent, self.momentum, apart=apart)

    def step(self, state: Vectors, total: Total, server_round: int) -> tuple[Move, Vectors]:
        """Move by the mean update, and the control by the clients' share of all clients."""
        gradient = total.extra["gradient"]
        old = state.get("control", torch.zeros_like(gradient))
        change = gradient.add_(old).neg_()  # the mean of c_k' - c_k
        holders = state.get("holders")
        control = add_to_mean_of_all(old, change, total, self.num_clients, holders)
        kept = {} if holders is None else {"holders": holders}
        return Move(total.mean, self.server_lr or 1.0), {**kept, "control": control}
