"""Train the weights whose sensitivity, shared among the clients that agree on them, is smallest.

Our own rule. It uses what only the federation knows: whether clients want to move a weight in the
same direction. Let g_kj be client k's mean gradient of the loss (true labels) for weight j, and
S_j the sensitivity summed over clients, which "least-sensitive" ranks by. The score is

    S_j / a_j,    a_j = max(1, (sum_k g_kj)^2 / sum_k g_kj^2),    1 <= a_j <= K,

and the smallest scores are trained. a_j is an effective number of agreeing clients: K when all K
gradients are equal, the number of clients that have a gradient at all when those agree, and
1 in expectation when signs are independent (hence the floor: below it there is only noise).

Why this ratio. One local step of length eta moves client k by -eta g_kj and the average by
-eta m_j, m_j = sum_k g_kj / K. To first order the average gains eta m_j^2; to second order, with
S_j for the curvature, the local steps cost (eta^2 / 2) S_j (sum_k g_kj^2) / K. Cost over gain is
proportional to S_j sum_k g_kj^2 / (sum_k g_kj)^2: the rule trains the weights whose local movement
costs least for what survives the averaging.

Reduction. With one client, with equal clients, or where no weight has any agreement, a_j is the
same everywhere, and the rule is "least-sensitive" (exactly for one client, else up to rounding).

Cost. Besides its sensitivities a client sends its mean gradient, one more float32 vector (4 bytes
per maskable entry and calibration round: 86.7 MB for ViT-S/16), from which the server keeps two
running sums. Under secure aggregation, where the server sees sums only, the client would send the
square of its mean gradient too (another 4 bytes). Signs would do in place of gradients, at one bit
per entry (2.7 MB): then sum_k g_kj^2 = K, and a_j is max(1, M_j^2 / K) for a majority of M_j signs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedta_app.masks.rule import Batches, MaskRule, ScoreSums


def mean_gradient(model: nn.Module, names: Sequence[str], batches: Batches) -> Tensor:
    """Return the gradient of the mean loss over all images, of shape (N,), at the true labels."""
    parameters = [model.get_parameter(name) for name in names]
    device = parameters[0].device
    total, num_images = torch.zeros((), device=device), 0
    for images, labels, *_ in batches:
        loss = cross_entropy(model(images.to(device)), labels.to(device), reduction="sum")
        # A parameter that the loss does not depend on has the gradient zero.
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        total = total + torch.cat([gradient.flatten() for gradient in gradients])
        num_images += len(images)
    if not num_images:
        raise ValueError("batches holds no examples when read for the second time in a round.")
    return total / num_images


class AgreementSums(ScoreSums):
    """Sums of the clients' mean gradients and of their squares, beside the sensitivities'."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._gradients = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)

    def add_statistic(self, statistic: Tensor) -> None:
        """Add a client's mean gradient (N,)."""
        self._gradients += statistic
        self._squares += statistic.double().square()

    def scores(self) -> Tensor:
        """Return S_j / a_j, float64 of shape (N,)."""
        return self.sensitivities / self.agreeing_clients()

    def agreeing_clients(self) -> Tensor:
        """Return a_j, of shape (N,); 1 where no client has a gradient."""
        ratio = self._gradients.square() / self._squares
        agreeing = torch.where(self._squares == 0, 1.0, ratio)
        return agreeing.clamp(1.0, float(self.num_clients))  # rounding may leave [1, K]


RULE = MaskRule("agreement", takes_threshold=False, statistic=mean_gradient, sums=AgreementSums)
