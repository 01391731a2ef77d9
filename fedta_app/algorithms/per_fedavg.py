r"""Per-FedAvg: global weights from which one step on a client's data leads to a good model for it.

Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach", NeurIPS 2020, arXiv 2002.07948, Algorithm 1, in its
first-order form, Per-FedAvg (FO). With :math:`\alpha` the rate of the step that makes the model a
client's own and :math:`\beta` the clients' learning rate, a local step is

.. math::

    w' = w - \alpha\, g_k(w; B), \qquad w \leftarrow w - \beta\, g_k(w'; B')

for two mini-batches of client k. The exact gradient of :math:`F_k(w - \alpha \nabla F_k(w))` is
:math:`(I - \alpha \nabla^2 F_k(w))\, \nabla F_k(w')`, whose factor is left out. B' is the batch of
FedAvg, and B is drawn by a key of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedta_app.algorithms.base import LocalRule, Vectors
from fedta_app.algorithms.fedavg import MaskedFedAvg


@dataclass(frozen=True)
class PerFedAvg(MaskedFedAvg):
    """See the module. With a rate of 0 this is FedAvg, bit for bit.

    Where clients have masks of their own, that is `MaskedFedAvg`.

    Attributes
    ----------
    personal_lr : float
        alpha, at least 0 (the paper: 0.01, with beta 0.001).
    """

    name: ClassVar[str] = "per-fedavg"
    personal_lr: float = 0.01

    @property
    def adaptation(self) -> float:
        """Alpha: a client's model is one step from the global one."""
        return self.personal_lr

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Take every gradient one step ahead."""
        return LocalRule(ahead=self.personal_lr)
