"""FedProx: local training that is pulled back to the global weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedta_app.algorithms.base import Correction, LocalRule, Vectors
from fedta_app.algorithms.fedavg import MaskedFedAvg


@dataclass(frozen=True)
class FedProx(MaskedFedAvg):
    r"""Each client minimises :math:`F_k(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2`.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127,
    equation 2. The gradient of the penalty is mu (w - w_t); it is added before clipping, weight
    decay and momentum. Clients are sampled uniformly and weighed by their examples, as most
    implementations do (the paper samples by examples and weighs uniformly). With mu = 0 this is
    FedAvg, bit for bit; where clients have masks of their own, `MaskedFedAvg`.

    Attributes
    ----------
    pull : float
        mu, at least 0.
    """

    name: ClassVar[str] = "fedprox"
    pull: float = 0.01

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Pull towards the weights that training starts from."""
        return LocalRule(correction=Correction(self.pull, start) if self.pull else None)
