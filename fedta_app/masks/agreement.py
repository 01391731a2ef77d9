"""Sensitivity shared out among the clients that agree: the score of the mask rule "agreement".

Our own rule; it uses what only the federation knows, namely whether clients want to move a weight
the same way. Let g_kj be client k's mean gradient of the loss (true labels) for weight j, and
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

Cost. Beside its sensitivities a client sends one more float32 vector, its mean gradient (4 bytes
per maskable entry and calibration round: 86.7 MB for ViT-S/16), from which the server keeps two
running sums. Under secure aggregation, where the server sees sums only, the client sends the
square of its mean gradient too (another 4 bytes). Signs will do in place of gradients, at one bit
per entry (2.7 MB; `pack_mask` packs them): then sum_k g_kj^2 = K, and a_j is max(1, M_j^2 / K) for
a majority of M_j signs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedta_app.masks.sets import check_alike


def agreement_scores(
    score_sum: Mapping[str, Tensor],
    gradient_sum: Mapping[str, Tensor],
    gradient_square_sum: Mapping[str, Tensor],
    num_clients: int,
) -> dict[str, Tensor]:
    """Return the scores that the rule "agreement" takes the smallest of.

    Parameters
    ----------
    score_sum
        Name -> sensitivities summed over clients, S_j; not negative.
    gradient_sum
        Name -> sum over clients of their mean gradients (or of the signs of these).
    gradient_square_sum
        Name -> sum over clients of the squares of these.
    num_clients
        K, how many clients are in the sums.

    Returns
    -------
    dict[str, Tensor]
        Names, shapes and dtypes of `score_sum`.

    Raises
    ------
    ValueError
        If `num_clients` is below 1, or a sum lacks a name or has another shape.
    """
    if num_clients < 1:
        raise ValueError(f"num_clients is {num_clients}; it must be at least 1.")
    check_alike(gradient_sum, score_sum, "gradient_sum")
    check_alike(gradient_square_sum, score_sum, "gradient_square_sum")
    scores = {}
    for name, sensitivity in score_sum.items():
        clients = _agreeing_clients(gradient_sum[name], gradient_square_sum[name], num_clients)
        scores[name] = (sensitivity / clients).to(sensitivity.dtype)
    return scores


def _agreeing_clients(total: Tensor, squares: Tensor, num_clients: int) -> Tensor:
    """Return a_j in float64, 1 where no client has a gradient; rounding cannot exceed [1, K]."""
    ratio = total.double().square() / squares.double()
    return torch.where(squares == 0, 1.0, ratio).clamp(1.0, float(num_clients))
