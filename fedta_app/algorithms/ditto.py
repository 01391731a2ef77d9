r"""Ditto: beside the global model, every client trains a model of its own that is pulled to it.

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
2012.04221, Algorithm 1. The global weights x are FedAvg's, bit for bit. Client k keeps weights
:math:`v_k` from round to round, for which it minimises

.. math::

    F_k(v) + \frac{\lambda}{2} \lVert v - x \rVert^2

by as many local steps as it takes for the global weights, at the same learning rate:

.. math::

    v_k \leftarrow v_k - \eta \, (g_k(v_k) + \lambda (v_k - x))

where x are the global weights that the round starts from. In the first round that a client takes
part in, :math:`v_k` is x. Each training draws its batches by a key of its own, so neither changes
a bit of the other. The pull is added before clipping, weight decay and momentum.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedta_app.algorithms.base import PERSONAL, Correction, LocalRule, PersonalModel, Vectors
from fedta_app.algorithms.fedavg import MaskedFedAvg
from fedta_app.errors import ConfigError


@dataclass(frozen=True)
class Ditto(MaskedFedAvg):
    """See the module. Where clients have masks of their own, the global weights are MaskedFedAvg's.

    Attributes
    ----------
    pull : float
        lambda, at least 0, where each client trains alone.
    lr, momentum : float
        Of the clients' SGD.
    batch_size, lr_batch_size : int
        By whose quotient `lr` is multiplied, unless the latter is 0.

    Raises
    ------
    ConfigError
        When the pull is so strong that steps along it alone run away: gradient descent with
        momentum m on a quadratic of curvature lambda needs lambda < 2 (1 + m) / lr.
    """

    name: ClassVar[str] = "ditto"
    personal: ClassVar[bool] = True
    pull: float = 0.01
    lr: float = 0.0
    batch_size: int = 1
    lr_batch_size: int = 0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        scaling = self.batch_size / self.lr_batch_size if self.lr_batch_size else 1.0
        lr = self.lr * scaling
        if self.pull * lr >= 2 * (1 + self.momentum):
            scaled = f", which the rule of lr-batch-size makes {lr:g}" if scaling != 1 else ""
            raise ConfigError(
                f"pull = {self.pull:g} is not allowed with strategy = 'ditto' and lr = "
                f"{self.lr:g}{scaled}: pull is below 2 (1 + momentum) / lr = "
                f"{2 * (1 + self.momentum) / lr:g} there, because longer steps overshoot"
            )

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Train the client's own weights too, pulled to those that training starts from."""
        pulled = LocalRule(correction=Correction(self.pull, start) if self.pull else None)
        return LocalRule(personal=PersonalModel(memory.get(PERSONAL, start), pulled))
