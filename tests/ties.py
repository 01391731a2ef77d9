"""Which images are right, where another batch size or solver may turn a tie of two classes."""

import torch
from torch import Tensor


def right(logits: Tensor, labels: Tensor, tie: float = 1e-5) -> Tensor:
    """Return whether each image is right, with ties against it and in its favour: shape (2, N).

    A tie is a gap between the label's logit and the highest other one that rounding may close.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    gap = logits.gather(1, labels[:, None])[:, 0] - others.max(dim=1).values
    return torch.stack([gap > tie, gap > -tie])
