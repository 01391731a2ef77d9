r"""Train the weights that matter to a client's own data and not to the data of the others.

Our own rule, for masks of clients' own. With :math:`S_{kj}` the sensitivity of weight j on client
k's images, client k trains the weights with the largest

.. math::

    \frac{S_{kj}}{\sum_{l \ne k} S_{lj}},

which is 0 where its own sensitivity is 0, and infinite where only it is sensitive. What it changes
then matters least to what the others have learned. The server adds up the sensitivities of all
clients and sends each of them the sum, from which a client takes its own.

Cost: every client sends one vector of sensitivities and receives their sum (4 bytes per maskable
entry each way), and sends its mask as bits. The server learns every client's sensitivities, as with
`mask-scope = "global"`, and every client the sum of the others'.
"""

import torch
from torch import Tensor

from fedta_app.masks.rule import MaskRule


def contrast(own: Tensor, total: Tensor) -> Tensor:
    """Return the sensitivities of one client in relation to those of all others, (N,).

    Parameters
    ----------
    own : Tensor of shape (N,)
    total : Tensor of shape (N,)
        Summed over all clients, this one included.

    Examples
    --------
    >>> contrast(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([6.0, 0.0, 1.0])).tolist()
    [0.5, 0.0, inf]
    """
    others = (total - own).clamp(min=0)  # rounding may leave less than nothing
    return torch.where(own > 0, own / others, 0.0)


RULE = MaskRule("contrast", largest_first=True, takes_threshold=False, against_others=contrast)
