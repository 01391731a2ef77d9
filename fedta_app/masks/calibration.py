"""Calibration of a mask in rounds that each keep a smaller part of what the round before kept.

TaLoS (Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620): after round r of R the trained share
is density^(r/R), and while a round's sensitivities are measured, the weights that earlier rounds
dropped are multiplied by a soft value (0.1 in the paper's published code). Without that (soft value
1) and with fixed labels any number of rounds gives the mask of one round. (Layer by layer, a small
layer can have one weight more or less: by the method of largest remainders its share can grow while
the total falls.) Fine-tuning starts from the original weights.

`client_scores` is the part of a client in a round, `Calibration.advance` that of whoever has the
scores: a server that sums them over clients, or a single machine.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedta_app.masks.rule import Batches, Entries, MaskRule
from fedta_app.masks.selection import round_density, select
from fedta_app.seeding import checked_seed, torch_generator
from fedta_app.sensitivity import Trusted, evaluation_mode, fisher_into
from fedta_app.vectors import FlatMask, Layout


@dataclass
class Calibration:
    """The rounds in which a mask is found: scores go in, and the mask gets smaller.

    `round` and `mask` are all that changes: to go on after a checkpoint, give both.

    Attributes
    ----------
    rule : MaskRule
        A rule that needs no scores is done after one round, whatever `num_rounds` says.
    layout : Layout
        The maskable parameters.
    values : Tensor of shape (N,)
        Their original weights; the mask lies on their device.
    sparsity, threshold, seed, scope
        As in `fedta_app.masks.build_mask`; a threshold is applied in every round.
    num_rounds : int
        At least 1.
    round : int
        How many rounds are done.
    mask : FlatMask or None
        The mask after these; None before the first.

    Raises
    ------
    ValueError
        If the sparsity is outside [0, 1], if there are no rounds, or if `mask` is missing after a
        round or given before the first, or if the seed is not an integer.
    """

    rule: MaskRule
    layout: Layout
    values: Tensor
    sparsity: float | None = None
    threshold: float | None = None
    num_rounds: int = 1
    seed: int = 0
    scope: str = "global"
    round: int = 0
    mask: FlatMask | None = None

    def __post_init__(self) -> None:
        self.seed = checked_seed(self.seed)
        if self.num_rounds < 1:
            raise ValueError(f"num_rounds is {self.num_rounds}; it must be at least 1.")
        if (self.mask is None) != (self.round == 0):
            given = "missing" if self.mask is None else "given"
            raise ValueError(f"mask is {given} after round {self.round}; only round 0 has none.")
        if self.sparsity is not None:
            round_density(self.sparsity, self.layout.size)  # refuses what is no share
        if not self.rule.needs_scores:
            self.num_rounds = 1

    @property
    def done(self) -> bool:
        """Whether the last round is done."""
        return self.round >= self.num_rounds

    def advance(self, scores: Tensor | None = None) -> FlatMask:
        """Do a round and return its mask, a subset of the mask of the round before.

        Parameters
        ----------
        scores : Tensor of shape (N,), optional
            What `ScoreSums.scores` returned; not read by rules that need no scores.

        Raises
        ------
        ValueError
            If all rounds are done, if the rule needs scores and all of them are zero, or as
            `fedta_app.masks.build_mask` does.
        """
        if self.done:
            raise ValueError(f"all {self.num_rounds} rounds of the calibration are done.")
        if scores is not None:
            self._require_evidence(scores)
        number = self.round + 1
        sparsity = self.sparsity
        if sparsity is not None and number < self.num_rounds:
            sparsity = 1 - (1 - sparsity) ** (number / self.num_rounds)
        chosen = select(
            self.rule,
            Entries(
                self.layout,
                self.values.detach().cpu(),
                None if scores is None else scores.cpu(),
                self.seed,
            ),
            sparsity=sparsity,
            threshold=self.threshold,
            scope=self.scope,
            alive=None if self.mask is None else self.mask.mask,
        )
        self.round, self.mask = number, FlatMask(chosen.to(self.values.device))
        return self.mask

    def advance_by(self, messages: Iterable[Tensor]) -> FlatMask:
        """Do a round with what the clients sent (`client_scores`), and return its mask.

        The messages are added as they come, so that one at a time is in memory.
        """
        sums, dtype = self.rule.sums(self.layout.size), torch.float32
        for message in messages:
            sums.add(message)
            dtype = message.dtype
        return self.advance(sums.scores().to(dtype))

    def _require_evidence(self, scores: Tensor) -> None:
        """Refuse scores that are all zero: position, which breaks ties, would choose the mask.

        Zero for some is evidence: the output does not depend on them. On a client with few images
        that may be so for all that is left after some rounds.
        """
        if self.rule.needs_scores and not scores.any():
            raise ValueError(
                f"the scores of calibration round {self.round + 1} are zero for all "
                f"{scores.numel()} weights, so nothing but their position tells them apart: the "
                "model's output does not depend on its weights (a head of zeros, probabilities of "
                "exactly 1), or nobody sent scores."
            )

    def run(self, measure: Callable[[FlatMask | None, int], Tensor]) -> FlatMask:
        """Do all rounds that are left, with the scores of one client, and return the last mask.

        Parameters
        ----------
        measure : callable
            Called as `measure(mask, round)` with the mask so far and the number of the round, from
            1; returns what `client_scores` does. Not called for rules that need no scores.
        """
        while not self.done:
            if self.rule.needs_scores:
                self.advance_by([measure(self.mask, self.round + 1)])
            else:
                self.advance()
        assert self.mask is not None
        return self.mask


def client_scores(
    model: nn.Module,
    layout: Layout,
    weights: Sequence[Tensor],
    batches: Batches,
    rule: MaskRule,
    *,
    round: int,
    mask: FlatMask | None,
    soft_value: float,
    seed: int,
    labels: Literal["sampled", "true"] = "sampled",
    output: Literal["log_prob", "logit"] = "log_prob",
    trusted: Trusted | None = None,
) -> Tensor:
    """Return what a client sends in a round of calibration.

    The model's weights and mode are the same afterwards, bit for bit. Every round draws its own
    labels; which label an example gets depends on the seed, the round and the example's id, so that
    the scores of several clients add up to those of one machine.

    Parameters
    ----------
    layout : Layout
        The maskable parameters of the model.
    weights : sequence of Tensor
        The memory of these parameters, in the order of the layout: one vector (N,) that they are
        views of, or the parameters themselves.
    batches
        Tuples (images, labels) or (images, labels, sample ids).
    round : int
        From 1.
    mask, soft_value
        As in `softened`: the mask of the rounds so far.
    labels, output, trusted
        As in `fedta_app.sensitivity.fisher_into`.

    Returns
    -------
    Tensor of shape (N,) or (2 N,)
        The sensitivities, then the rule's statistic, if it has one.

    Raises
    ------
    ValueError
        If there are no examples, or as `fedta_app.sensitivity.fisher_diagonal` does.
    """
    if isinstance(batches, Iterator) and rule.statistic is not None:
        batches = list(batches)  # they are read twice
    size = layout.size
    dtype = torch.promote_types(torch.float32, weights[0].dtype)
    message = torch.empty(rule.message_size(size), dtype=dtype, device=weights[0].device)
    generator = torch_generator(seed, "calibration-labels", round)
    with softened(weights, mask, soft_value):
        sensitivities = layout.views(message[:size])
        fisher_into(
            model,
            sensitivities,
            batches,
            labels=labels,
            output=output,
            generator=generator,
            trusted=trusted,
        )
        if rule.statistic is not None:
            with evaluation_mode(model):
                message[size:] = rule.statistic(model, layout.names, batches)
    return message


@contextmanager
def softened(weights: Iterable[Tensor], mask: FlatMask | None, soft_value: float) -> Iterator[None]:
    """Multiply the entries outside the mask by `soft_value` for the time of a `with` block.

    Trained entries keep their bits, and afterwards every entry has its old bits, whatever happened
    in the block.

    Parameters
    ----------
    weights : iterable of Tensor
        One after another they have the N entries of the mask; changed in place.
    mask : FlatMask or None
        With None nothing changes.

    Raises
    ------
    ValueError
        If `soft_value` is outside [0, 1].
    """
    if not 0 <= soft_value <= 1:
        raise ValueError(f"soft_value is {soft_value}; it must be between 0 and 1.")
    if mask is None:
        yield
        return
    tensors = [tensor.detach() for tensor in weights]
    originals = [tensor.clone() for tensor in tensors]
    pieces = mask.mask.split([tensor.numel() for tensor in tensors])
    try:
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(torch.where(piece.view(tensor.shape), tensor, tensor * soft_value))
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.copy_(original)
