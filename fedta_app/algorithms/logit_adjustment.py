"""Logit adjustment: each client trains under a loss that knows how common its classes are."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedta_app.algorithms.base import LocalRule, Vectors
from fedta_app.algorithms.fedavg import MaskedFedAvg


class _Adjusted(LocalRule):
    def __init__(self, strength: float, smoothing: float) -> None:
        self._strength = strength
        self._smoothing = smoothing

    def begin(self, class_counts: Tensor) -> None:
        """Add the logarithm of the client's smoothed class prior to the logits of the loss."""
        counts = class_counts.float()
        prior = counts + self._smoothing * counts.mean()
        shift = self._strength * (prior / prior.sum()).log()
        self.loss = lambda logits, labels: cross_entropy(logits.float() + shift, labels)


@dataclass(frozen=True)
class LogitAdjustment(MaskedFedAvg):
    r"""FedAvg with the local loss :math:`-\log \mathrm{softmax}(z + \tau \log \pi_k)_y`.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv 2007.07314, equation
    10, with the class prior of each client: :math:`\pi_k(c)` is in proportion to
    :math:`n_{kc} + s \bar{n}_k` for the client's :math:`n_{kc}` images of class c and their mean
    :math:`\bar{n}_k` over the classes. A client whose classes are few is then not rewarded for
    pushing the others' logits down. FedLC (Zhang et al., ICML 2022, arXiv 2209.00189) and FedRS (Li
    and Zhan, KDD 2021) do the same with other shifts. The prior never leaves the client: what is
    sent is what FedAvg sends. With strength 0 this is FedAvg, bit for bit.

    Attributes
    ----------
    prior_strength : float
        tau, at least 0.
    prior_smoothing : float
        s, above 0: what a class without images counts, as a share of the mean class.
    """

    name: ClassVar[str] = "logit-adjustment"
    prior_strength: float = 1.0
    prior_smoothing: float = 0.1

    def local(self, start: Tensor, received: Vectors, memory: Vectors) -> LocalRule:
        """Train under the adjusted loss."""
        if not self.prior_strength:
            return LocalRule()
        return _Adjusted(self.prior_strength, self.prior_smoothing)
