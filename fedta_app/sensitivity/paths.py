"""Two ways to add up squared per-example gradients, and the choice between them.

The loop runs every example alone. It is the definition, and right for every model. The tape takes
a batch at a time and is faster. It is trusted if it agrees with the loop on two examples; the loop
does the work of a model that the tape refuses, fails on or gets wrong. Two examples may take as
long as all that a client scores, so that whoever scores for many clients keeps what was found.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedta_app.errors import first_line
from fedta_app.sensitivity.keyed import keyed_uniform
from fedta_app.sensitivity.layers import BatchStatisticsError, Score, UnsupportedModelError
from fedta_app.sensitivity.tape import SquaredGradientTape

# Tape and loop agree if the gradients of a tensor differ by less than this part of their norm.
# Rounding is below it, also in TF32 or where it moves a few units across the kink of a ReLU;
# gradients of the wrong examples or axes are far above.
_TOLERANCE = 0.05
# A tensor with less than this part of the largest norm may be rounding alone, like the gradient of
# a bias before a normalisation.
_ROUNDING = 1e-4


class Batch(NamedTuple):
    """Images (B, ...), their labels (B,), and their ids (B,)."""

    images: Tensor
    labels: Tensor
    ids: Tensor

    def part(self, start: int, stop: int) -> "Batch":
        """Return some of the examples."""
        return Batch(*(tensor[start:stop] for tensor in self))


@dataclass(frozen=True)
class Objective:
    """The function of the logits that is differentiated, summed over examples.

    Attributes
    ----------
    sampled : bool
        Labels are drawn from the model instead of taken from the batch.
    log_prob : bool
        The log-probability of the label instead of its logit.
    seed : int
        Determines the drawn labels, together with the ids.
    """

    sampled: bool
    log_prob: bool
    seed: int = 0

    def labels(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the label of each example, on the device of the logits."""
        if not self.sampled:
            return batch.labels.to(logits.device)
        # Inverse transform sampling, on the CPU so that all devices draw the same labels.
        cumulative = logits.detach().to("cpu", torch.float64).softmax(1).cumsum(1)
        threshold = keyed_uniform(batch.ids, self.seed)[:, None] * cumulative[:, -1:]
        drawn = (cumulative <= threshold).sum(1).clamp(max=logits.shape[1] - 1)
        return drawn.to(logits.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over examples of the labels' log-probabilities or logits."""
        values = logits.log_softmax(1) if self.log_prob else logits
        return values.gather(1, labels[:, None]).sum()


# Of one model: for the shapes of an image, how many examples stood together in a check that passed.
Trusted = dict[torch.Size, int]


def accumulate(
    model: nn.Module,
    totals: Mapping[str, Tensor],
    batches: Iterable[Batch],
    objective: Objective,
    trusted: Trusted,
) -> None:
    """Add all batches by the tape, or by the loop from the first batch that the tape gets wrong.

    Parameters
    ----------
    trusted : dict
        What calls for this model and these parameters have found: it is not checked again.

    Raises
    ------
    ValueError
        If the model normalises over the batch or does not return one row of logits per example.
    """
    failure = ""
    tried: Trusted = {}  # in this call
    for index, batch in enumerate(batches):
        shape, together = batch.images.shape[1:], min(len(batch.images), 2)
        if not failure and tried.get(shape, 0) >= together:
            add_by_tape(model, totals, batch, objective)
            continue
        if not failure:
            tried[shape] = together
            before = {name: total.clone() for name, total in totals.items()} if index else {}
            check = trusted.get(shape, 0) < together
            failure = _try_tape(model, totals, batch, objective, check=check)
            if not failure:
                trusted[shape] = max(together, trusted.get(shape, 0))
                continue
            for name, total in totals.items():
                if before:
                    total.copy_(before[name])
                else:
                    total.zero_()
        add_by_loop(model, totals, batch, objective)
        _say(f"sensitivities are measured example by example, which is slower: {failure}")


def _try_tape(
    model: nn.Module,
    totals: Mapping[str, Tensor],
    batch: Batch,
    objective: Objective,
    *,
    check: bool,
) -> str:
    """Add a batch by the tape, and return why that cannot be trusted, or "" if it can."""
    # Unequal parts: an activation whose first dimension is not the batch may have the size of one
    # part by chance, but not of both. Without a check too: the rounding of a client's sum must not
    # depend on whether this process has served another client before.
    cut = (len(batch.images) - 1) // 2
    parts = [batch.part(0, cut), batch.part(cut, len(batch.images))] if cut else [batch]
    try:
        logits = torch.cat([add_by_tape(model, totals, part, objective) for part in parts])
        if not check:
            return ""
        return _disagreement(model, totals, batch.part(0, 2), objective, logits[:2])
    except (BatchStatisticsError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # torch and models raise all kinds; the loop raises what is real
        return str(error) if isinstance(error, UnsupportedModelError) else first_line(error)


def _disagreement(
    model: nn.Module,
    like: Mapping[str, Tensor],
    batch: Batch,
    objective: Objective,
    logits: Tensor,
) -> str:
    """Return where tape and loop differ on these examples, or ""; `logits` are the tape's."""
    batch = batch._replace(labels=objective.labels(logits, batch))  # the same for both
    objective = replace(objective, sampled=False)
    taped, looped = ({name: torch.zeros_like(t) for name, t in like.items()} for _ in range(2))
    add_by_tape(model, taped, batch, objective)
    alone = add_by_loop(model, looped, batch, objective)
    if not _close(logits, alone):
        return "the logits of an example depend on the other examples of its batch"
    largest = max(_norm(score.sqrt()) for score in looped.values())
    for name in like:
        tape, loop = taped[name].sqrt_(), looped[name].sqrt_()  # gradients
        if (not tape.any() and loop.any()) or not _close(tape, loop, _ROUNDING * largest):
            return f"the gradients of {name!r} are not what they are example by example"
    return ""


def _close(values: Tensor, reference: Tensor, least: float = 0.0) -> bool:
    """Return whether values differ from a reference, of at least some norm, by rounding alone."""
    if not torch.equal(values.isfinite(), reference.isfinite()):
        return False
    return _norm(values - reference) <= _TOLERANCE * max(_norm(reference), least)


def _norm(values: Tensor) -> float:
    """Return the Euclidean norm of the finite values."""
    return float(torch.linalg.vector_norm(values.nan_to_num(0.0, 0.0, 0.0)))


@lru_cache(maxsize=64)
def _say(message: str) -> None:
    """Log a message once in a process."""
    logging.getLogger(__name__).warning(message)


def add_by_tape(
    model: nn.Module, totals: Mapping[str, Tensor], batch: Batch, objective: Objective
) -> Tensor:
    """Add the squared gradients of a batch by `SquaredGradientTape`, and return the logits."""
    parameters = dict(model.named_parameters())
    tape = SquaredGradientTape(
        {parameters[name]: total for name, total in totals.items()}, len(batch.images)
    )
    with tape:
        logits = _logits(model, batch.images.clone())
    tape.backward(objective(logits, objective.labels(logits, batch)))
    return logits.detach()


def add_by_loop(
    model: nn.Module, totals: Mapping[str, Tensor], batch: Batch, objective: Objective
) -> Tensor:
    """Add the squared gradients of a batch, example by example, and return the logits."""
    parameters = dict(model.named_parameters())
    scores = [Score(parameters[name], total) for name, total in totals.items()]
    logits, through_input = [], False
    with _gradients_kept(model):
        for index in range(len(batch.images)):
            example = batch.part(index, index + 1)
            logits.append(_differentiate(model, example, objective, through_input))
            if index == 0:
                through_input = _input_matters(model, example, objective, scores)
            for score in scores:
                gradient = score.value.grad
                if gradient is not None:
                    score.add(gradient.to_dense()[None] if gradient.is_sparse else gradient[None])
    return torch.cat(logits)


def _differentiate(
    model: nn.Module, example: Batch, objective: Objective, through_input: bool
) -> Tensor:
    """Write the gradients of one example to `.grad`, and return its logits.

    `backward` is used, because `torch.autograd.grad` passes by parameters that are used within
    reentrant checkpoints. The graph is kept, because the model may keep a part of it outside its
    modules for the next example.
    """
    model.zero_grad(set_to_none=True)
    image = example.images.clone()  # the model may change it in place
    if through_input:
        image = image.requires_grad_().clone()
    logits = _logits(model, image)
    value = objective(logits, objective.labels(logits, example))
    if value.requires_grad:
        torch.autograd.backward(value, retain_graph=True)
    return logits.detach()


def _input_matters(
    model: nn.Module, example: Batch, objective: Objective, scores: list[Score]
) -> bool:
    """Return whether parameters get gradients only if the input requires one too; leave those.

    These are parameters of the first layers under reentrant checkpointing.
    """
    found = [score.value.grad for score in scores]
    if all(gradient is not None for gradient in found) or not example.images.is_floating_point():
        return False
    try:
        _differentiate(model, example, objective, through_input=True)
    except Exception:  # something in the model is not differentiable in the input
        more = False
    else:
        more = any(
            gradient is None and score.value.grad is not None
            for gradient, score in zip(found, scores, strict=True)
        )
    if not more:
        for gradient, score in zip(found, scores, strict=True):
            score.value.grad = gradient
    return more


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Put back each parameter's `.grad` afterwards, and let no hook see those of the block."""
    kept = [(p, p.grad, p._post_accumulate_grad_hooks or {}) for p in model.parameters()]
    hooks = [(held, dict(held)) for _, _, held in kept]
    try:
        for held, _ in hooks:
            held.clear()
        yield
    finally:
        for parameter, gradient, _ in kept:
            parameter.grad = gradient
        for held, content in hooks:
            held.update(content)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the model's logits (B, C), checked; those of one image may come without the batch."""
    logits = model(images)
    if isinstance(logits, Tensor):
        if logits.ndim == 1 and len(images) == 1:
            logits = logits[None]
        if logits.ndim == 2 and len(logits) == len(images):
            return logits
        got = f"shape {tuple(logits.shape)}"
    else:
        got = f"a {type(logits).__name__}"
    raise ValueError(
        f"model must return logits (examples, classes), got {got} for images {tuple(images.shape)}"
    )
