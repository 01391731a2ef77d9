"""Running means of updates: over everybody, over those who trained, over those who agree.

- Over everybody: FedAvg (McMahan et al., AISTATS 2017, arXiv 1602.05629).
- Over those who trained a coordinate: HeteroFL (Diao et al., ICLR 2021, arXiv 2010.01264).
- Over those who agree on the sign: TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708).

Every mean is a running mean, updated in place as replies arrive (West, CACM 1979)::

    m <- m + (w_k / (w_1 + ... + w_k)) * (u_k - m)        so that   m = sum_k (w_k / W) * u_k

It costs one pass over each update, needs no total weight in advance, and its rounding error grows
no faster than that of a plain sum. What is exact, bit for bit, in float32 and float64:

- equal updates give that update, except that a zero in the result is always +0.0;
- the same replies in the same order give the same bits, packed or not, for any thread count;
- an uncovered coordinate is +0.0, and ``apply_update`` then keeps the weight's bits;
- with equal masks and integer weights below 2**24 in total, the masked mean is the plain one.

What is not: another order of the replies, or of unequal masks, moves the result by rounding.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedta_app.vectors.arithmetic import blocks

Update = Mapping[str, Tensor]
Mask = Mapping[str, Tensor]


class MeanAccumulator:
    """Weighted mean over everybody, one update at a time, in one buffer.

    ``mean_j = sum_k w_k u_kj / sum_k w_k``. Inputs are read, never kept nor changed.
    """

    def __init__(self) -> None:
        self._mean: dict[str, Tensor] = {}
        self._total = 0.0

    @torch.no_grad()
    def add(self, update: Update, weight: float) -> None:
        """Take one client's update; an update of weight zero is checked, then ignored.

        Parameters
        ----------
        update : Mapping[str, Tensor]
            Floating tensors; every update has the same names, shapes and dtypes.
        weight : float
            At least zero, for example the client's number of examples.

        Raises
        ------
        ValueError
            If the update differs from the earlier ones, or the weight is negative or not finite.
        """
        check_update(update, self._mean)
        _check_weight(weight)
        if weight == 0:
            return
        self._total += weight
        if not self._mean:
            self._mean = {name: value.clone() for name, value in update.items()}
            return
        for name, mean in self._mean.items():
            mean.lerp_(update[name], weight / self._total)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Hand over the mean and start afresh.

        Raises
        ------
        ValueError
            If no update of positive weight was added.
        """
        _check_total(self._total)
        mean = self._mean
        self._mean, self._total = {}, 0.0
        return _with_positive_zeros(mean)


class MaskedMeanAccumulator:
    """Weighted mean per coordinate over those who trained it, one update at a time.

    With ``S_j`` the clients whose mask is True at j, ``c_j = sum_{k in S_j} w_k`` their weight, W
    everybody's, and g the coverage exponent, 0 to 1::

        mean_j = sum_{k in S_j} w_k u_kj / (c_j^g * W^(1-g)),        0 where S_j is empty

    g = 1 is the mean over those who trained j, at full strength even if there is only one; g = 0
    divides by everybody, the plain mean of the masked updates; in between, a coordinate shrinks
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
        self._mean: dict[str, Tensor] = {}
        self._coverage: dict[str, Tensor] = {}
        self._total = 0.0

    @torch.no_grad()
    def add(self, update: Update, weight: float, mask: Mask | None = None) -> None:
        """Take one client's update; its entries outside the mask are ignored, whatever they hold.

        Parameters
        ----------
        update : Mapping[str, Tensor]
            Floating tensors; every update has the same names, shapes and dtypes.
        weight : float
            At least zero, for example the client's number of examples.
        mask : Mapping[str, Tensor], optional
            Bool tensors shaped like the update, True = trained. A missing name, or no mask at
            all, means that every entry was trained.

        Raises
        ------
        ValueError
            If update or mask do not fit, or the weight is negative or not finite.
        """
        check_update(update, self._mean)
        check_mask(mask or {}, update)
        _check_weight(weight)
        if weight == 0:
            return
        self._total += weight
        if not self._mean:
            self._mean = {name: torch.zeros_like(value) for name, value in update.items()}
            self._coverage = {name: torch.zeros_like(value) for name, value in update.items()}
        for name, mean in self._mean.items():
            entry = mask.get(name) if mask else None
            _masked_step(mean, self._coverage[name], update[name], weight, entry)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Hand over the mean and start afresh.

        Raises
        ------
        ValueError
            If no update of positive weight was added.
        """
        total = self._total
        mean, coverage = self._take()
        if self._exponent != 1:
            for name, value in mean.items():
                value.mul_(coverage[name].div_(total).pow_(1 - self._exponent))
        return _with_positive_zeros(mean)

    def _take(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        _check_total(self._total)
        state = self._mean, self._coverage
        self._mean, self._coverage, self._total = {}, {}, 0.0
        return state


class SignElectedMeanAccumulator:
    """Weighted mean per coordinate over those who agree with the elected sign (TIES-Merging).

    ``s_j = sign(sum_k w_k u_kj)`` over those who trained j, then the mean of the ``u_kj`` whose
    sign is ``s_j``, weighted by ``w_k``. A zero entry has no vote and no share. A draw gives 0
    (the authors' code gives it the sign that most coordinates have). TIES also trims each task
    vector first: here the masks do. Four buffers.
    """

    def __init__(self) -> None:
        self._up = MaskedMeanAccumulator()
        self._down = MaskedMeanAccumulator()

    def add(self, update: Update, weight: float, mask: Mask | None = None) -> None:
        """Take one client's update; see :meth:`MaskedMeanAccumulator.add`."""
        mask = mask or {}
        check_update(update, {})
        check_mask(mask, update)
        for accumulator, sign in ((self._up, torch.gt), (self._down, torch.lt)):
            voters = {name: sign(value, 0) for name, value in update.items()}
            for name, entry in mask.items():
                voters[name] &= entry
            accumulator.add(update, weight, voters)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Hand over the mean and start afresh.

        Raises
        ------
        ValueError
            If no update of positive weight was added.
        """
        up, up_weight = self._up._take()
        down, down_weight = self._down._take()
        for name, mean in up.items():
            balance = (mean * up_weight[name]).add_(down[name] * down_weight[name])
            mean.masked_fill_(balance <= 0, 0.0)
            down[name].masked_fill_(balance >= 0, 0.0)
            mean.add_(down[name])
        return _with_positive_zeros(up)


def _with_positive_zeros(mean: dict[str, Tensor]) -> dict[str, Tensor]:
    for value in mean.values():
        value.add_(0.0)
    return mean


def _masked_step(
    mean: Tensor, coverage: Tensor, update: Tensor, weight: float, mask: Tensor | None
) -> None:
    if mask is None:
        mask = torch.ones((), dtype=torch.bool, device=mean.device).expand_as(mean)
    for m, c, u, trained in blocks(mean, coverage, update, mask):
        share = trained.to(m.dtype).mul_(weight)
        c.add_(share)
        if not u.sum().isfinite():  # a share of 0 does not silence inf or NaN
            u = u.masked_fill(~trained, 0.0)
        m.lerp_(u, share.div_(c).nan_to_num_(0.0))  # 0 / 0 where nobody trained yet


def check_update(update: Update, like: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the update is floating and, if ``like`` is not empty, fits it."""
    if like and update.keys() != like.keys():
        odd = sorted(update.keys() ^ like.keys())
        raise ValueError(f"updates differ in their names, at {odd[0]!r}; all must share them")
    for name, value in update.items():
        if not value.is_floating_point():
            raise ValueError(f"update[{name!r}] is {value.dtype}; it must be floating point")
        if like and (value.shape, value.dtype) != (like[name].shape, like[name].dtype):
            raise ValueError(
                f"update[{name!r}] is {tuple(value.shape)} {value.dtype}; "
                f"it must be {tuple(like[name].shape)} {like[name].dtype}"
            )


def check_mask(mask: Mask, update: Update) -> None:
    """Raise ValueError unless each of the mask's entries is bool and shaped like the update's."""
    for name, entry in mask.items():
        if name not in update:
            raise ValueError(f"mask has {name!r}, which the update lacks")
        if entry.dtype != torch.bool or entry.shape != update[name].shape:
            raise ValueError(
                f"mask[{name!r}] is {tuple(entry.shape)} {entry.dtype}; "
                f"it must be {tuple(update[name].shape)} torch.bool"
            )


def _check_weight(weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight is {weight}; it must be a finite number, at least 0")


def _check_total(total: float) -> None:
    if not total > 0:
        raise ValueError("no update has a positive weight; a mean needs at least one")
