r"""Means of client updates, taken in one update at a time.

A server adds each update when it arrives and keeps one or two buffers, however many clients there
are. The weighted mean of the updates u_1, u_2, ... with weights w_1, w_2, ... is kept as

    m <- m + (w_k / (w_1 + ... + w_k)) * (u_k - m)        so that   m = sum_k (w_k / W) * u_k

It costs one pass over each update, needs no total weight in advance, and its rounding error grows
no faster than that of a plain sum. What is exact, bit for bit, in float32 and float64:

- equal updates give that update, except that a zero in the result is always +0.0;
- the same updates in the same order give the same bits, packed or not, for any thread count;
- an entry that nobody trained is +0.0, and ``stepped`` then keeps the weight's bits;
- with equal masks and integer weights below 2**24 in total, the masked mean is the plain one.

Another order of the updates, or of unequal masks, moves the result by rounding. Updates in float16
and bfloat16 are added up in float32, and the result is rounded once: half precision could neither
count the clients nor hold their weights.
"""

import math

import torch
from torch import Tensor

from fedta_app.vectors.arithmetic import blocks


class MeanAccumulator:
    """Weighted mean over everybody: ``mean_j = sum_k w_k u_kj / sum_k w_k``.

    Inputs are read, never kept nor changed.
    """

    def __init__(self) -> None:
        self._mean: Tensor | None = None
        self._dtype = torch.float32  # of the updates
        self._total = 0.0

    @torch.no_grad()
    def add(self, update: Tensor, weight: float) -> None:
        """Take one client's update; an update of weight zero is checked, then ignored.

        Parameters
        ----------
        update : floating Tensor
            Every update has the same shape and dtype.
        weight : float
            At least zero, for example the client's number of examples.

        Raises
        ------
        ValueError
            If the update differs from the earlier ones, or the weight is negative or not finite.
        """
        _check_next(update, self._mean, self._dtype, weight)
        if weight == 0:
            return
        self._total += weight
        if self._mean is None:
            self._mean, self._dtype = update.to(_wide(update.dtype), copy=True), update.dtype
        else:
            self._mean.lerp_(update.to(self._mean.dtype), weight / self._total)

    def scale_weights(self, factor: float) -> None:
        """Multiply the weights of all updates so far, at least by 0; their mean stays."""
        self._total *= factor

    @torch.no_grad()
    def result(self) -> Tensor:
        """Return the mean and start afresh.

        Raises
        ------
        ValueError
            If no update of positive weight was added.
        """
        mean = _some(self._mean).to(self._dtype)
        self._mean, self._total = None, 0.0
        return mean.add_(0.0)  # -0.0 becomes +0.0


class MaskedMeanAccumulator:
    """Weighted mean per entry over those who trained it.

    With ``S_j`` the clients whose mask is True at j, ``c_j = sum_{k in S_j} w_k`` their weight, W
    everybody's, and g the coverage exponent, 0 to 1::

        mean_j = sum_{k in S_j} w_k u_kj / (c_j^g * W^(1-g)),        0 where S_j is empty

    g = 1 is the mean over those who trained j, at full strength even if there is only one; g = 0
    divides by everybody, the plain mean of the masked updates; in between, an entry shrinks
    by ``(c_j / W)^(1-g)`` the fewer trained it. Two buffers: mean and coverage.

    Raises
    ------
    ValueError
        If the exponent lies outside [0, 1].
    """

    def __init__(self, coverage_exponent: float = 1.0) -> None:
        if not 0 <= coverage_exponent <= 1:
            raise ValueError(f"coverage_exponent is {coverage_exponent}; it must lie in [0, 1]")
        self._exponent = coverage_exponent
        self._mean: Tensor | None = None
        self._dtype = torch.float32  # of the updates
        self._coverage = torch.empty(0)
        self._total = 0.0

    @torch.no_grad()
    def add(self, update: Tensor, weight: float, mask: Tensor | None = None) -> None:
        """Take one client's update; its entries outside the mask are ignored, whatever they hold.

        Parameters
        ----------
        update : floating Tensor
            Every update has the same shape and dtype.
        weight : float
            At least zero, for example the client's number of examples.
        mask : bool Tensor, optional
            Of the update's shape, True = trained; None means that every entry was trained.

        Raises
        ------
        ValueError
            If update or mask do not fit, or the weight is negative or not finite.
        """
        _check_next(update, self._mean, self._dtype, weight)
        check_mask(mask, update)
        if weight == 0:
            return
        self._total += weight
        if self._mean is None:
            self._dtype = update.dtype
            self._mean = torch.zeros_like(update, dtype=_wide(update.dtype))
            self._coverage = torch.zeros_like(self._mean)
        if mask is None:
            mask = torch.ones((), dtype=torch.bool, device=update.device).expand_as(update)
        wide = update.to(self._mean.dtype)
        for m, c, u, trained in blocks(self._mean, self._coverage, wide, mask):
            share = trained.to(m.dtype).mul_(weight)
            c.add_(share)
            if not u.sum().isfinite():  # a share of 0 does not silence inf or NaN
                u = u.masked_fill(~trained, 0.0)
            m.lerp_(u, share.div_(c).nan_to_num_(0.0))  # 0 / 0 where nobody trained yet

    def scale_weights(self, factor: float) -> None:
        """Multiply the weights of all updates so far, at least by 0; their mean stays."""
        self._total *= factor
        root = math.sqrt(factor)  # the factor itself may be 0 in float32
        self._coverage.mul_(root).mul_(root)

    def result(self) -> Tensor:
        """Return the mean and start afresh.

        Raises
        ------
        ValueError
            If no update of positive weight was added.
        """
        return self.result_and_coverage()[0]

    @torch.no_grad()
    def result_and_coverage(self) -> tuple[Tensor, Tensor]:
        """Return the mean and, per entry, the weight of those who trained it; start afresh."""
        mean, coverage, total = _some(self._mean), self._coverage, self._total
        self._mean, self._coverage, self._total = None, torch.empty(0), 0.0
        if self._exponent != 1:
            mean.mul_((coverage / total).pow_(1 - self._exponent))
        return mean.to(self._dtype).add_(0.0), coverage  # -0.0 becomes +0.0


class SignElectedMeanAccumulator:
    """Weighted mean per entry over those who agree with the elected sign.

    TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708), without its trimming, which the
    masks do: ``s_j = sign(sum_k w_k u_kj)`` over those who trained j, then the mean of the ``u_kj``
    whose sign is ``s_j``, weighted by ``w_k``. A zero entry has no vote and no share. A draw gives
    0, to rounding (the authors' code gives it the sign that most entries have). Four buffers.
    """

    def __init__(self) -> None:
        self._positive = MaskedMeanAccumulator()
        self._negative = MaskedMeanAccumulator()

    def add(self, update: Tensor, weight: float, mask: Tensor | None = None) -> None:
        """Take one client's update; see :meth:`MaskedMeanAccumulator.add`."""
        check_mask(mask, update)
        for accumulator, sign in ((self._positive, torch.gt), (self._negative, torch.lt)):
            voters = sign(update, 0)
            accumulator.add(update, weight, voters if mask is None else voters.logical_and_(mask))

    @torch.no_grad()
    def result(self) -> Tensor:
        """Return the mean and start afresh.

        Raises
        ------
        ValueError
            If no update of positive weight was added.
        """
        mean, weight = self._positive.result_and_coverage()
        negative, negative_weight = self._negative.result_and_coverage()
        balance = weight.mul_(mean).add_(negative_weight.mul_(negative))
        mean.masked_fill_(balance <= 0, 0.0)
        negative.masked_fill_(balance >= 0, 0.0)
        return mean.add_(negative).add_(0.0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type to add up in: float32 for the half precisions, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _check_next(update: Tensor, mean: Tensor | None, dtype: torch.dtype, weight: float) -> None:
    """Refuse an update that does not fit the earlier ones, or whose weight cannot be added up."""
    check_update(update, None if mean is None else torch.empty((), dtype=dtype).expand_as(mean))
    largest = torch.finfo(_wide(update.dtype)).max
    if not 0 <= weight <= largest:
        raise ValueError(
            f"weight is {weight}; it must be a finite number, at least 0 and at most {largest:g}"
        )


def check_update(update: Tensor, like: Tensor | None, name: str = "update") -> None:
    """Raise ValueError unless the update is floating and, where `like` is given, fits it."""
    if not update.is_floating_point():
        raise ValueError(f"{name} is {update.dtype}; it must be floating point")
    if like is not None and (update.shape, update.dtype) != (like.shape, like.dtype):
        raise ValueError(
            f"{name} is {tuple(update.shape)} {update.dtype}; "
            f"it must be {tuple(like.shape)} {like.dtype}"
        )


def check_mask(mask: Tensor | None, update: Tensor, name: str = "mask") -> None:
    """Raise ValueError unless the mask is None, or bool and shaped like the update."""
    if mask is not None and (mask.dtype != torch.bool or mask.shape != update.shape):
        raise ValueError(
            f"{name} is {tuple(mask.shape)} {mask.dtype}; "
            f"it must be {tuple(update.shape)} torch.bool"
        )


def _some(mean: Tensor | None) -> Tensor:
    if mean is None:
        raise ValueError("no update has a positive weight; a mean needs at least one")
    return mean
