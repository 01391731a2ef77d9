"""Sensitivity of each weight: the diagonal of the Fisher information.

TaLoS (Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620), section 4: the sensitivity of a
weight is `F_jj = E_x E_{y ~ p(.|x)} [(d log p(y|x) / d theta_j)^2]`, with labels drawn from the
model, not taken from the data set. The gradient of each example is squared; the squared gradient of
a batch is another quantity, which vanishes near an optimum.

`output="logit"` is the score of the paper's published code, with the gradient of the raw logit of
the drawn label. Its expectation exceeds the Fisher diagonal by the squared gradient of the mean
logit, and it changes if a constant is added to all logits.

Scores are sums over examples, so the scores of clients add up to those of their pooled data: the
random number that draws the label of an example depends on the seed and the example's id only. (The
batch size changes logits by rounding, which can change a label very rarely.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from fedta_app.seeding import checked_seed
from fedta_app.sensitivity.keyed import keyed_uniform
from fedta_app.sensitivity.layers import UnsupportedModelError
from fedta_app.sensitivity.tape import SquaredGradientTape

LABELS = ("sampled", "true")
OUTPUTS = ("log_prob", "logit")

# Most bytes of per-example gradients that the slow path holds at once.
_SLOW_PATH_BYTES = 256 << 20


class _Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    ids: Tensor


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    labels: Literal["sampled", "true"] = "sampled",
    output: Literal["log_prob", "logit"] = "log_prob",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the sum over examples of squared per-example gradients.

    The model must map images (B, ...) to logits (B, C) and treat examples independently. It is run
    in evaluation mode and restored afterwards; no `.grad` is written. Models made of linear layers,
    convolutions, layer and group norms, and parameters that are added, multiplied or expanded (such
    as timm's `VisionTransformer`) take about the time and memory of a backward pass; other models
    use the slower per-example gradients of `torch.func`. Autocast is off, because squares of
    half-precision gradients underflow.

    Parameters
    ----------
    batches
        Tuples (images, labels) or (images, labels, sample_ids); ids are int64 (B,). Without ids,
        examples are numbered in their order, so pass ids if the data are divided among clients.
    labels
        "sampled" draws one label per example from the model's softmax (the Fisher information);
        "true" takes those of the batch (the empirical Fisher).
    output
        "log_prob" differentiates the label's log-probability, "logit" its raw logit.
    generator
        If given, it draws the seed, so that a second call draws other labels; `seed` is ignored.
    seed
        Determines the drawn labels, together with the ids.

    Returns
    -------
    dict[str, Tensor]
        For every parameter with `requires_grad` a tensor of its shape, on its device, float32
        (float64 for a float64 parameter). Divide by the number of examples for the expectation.

    Raises
    ------
    ValueError
        If an option is unknown, there are no examples, a batch is malformed, the model does not
        return one row of logits per example, or it normalises over the batch even in evaluation
        mode.

    Examples
    --------
    The sensitivities of a linear classifier to a single image, at its true label 1. The gradient
    of log p(1) with respect to the logits is onehot(1) - p, and p = (1/2, 1/2) here:

    >>> import torch
    >>> from fedta_app.sensitivity import fisher_diagonal
    >>> model = torch.nn.Linear(2, 2)
    >>> for parameter in model.parameters():
    ...     _ = torch.nn.init.zeros_(parameter)
    >>> batches = [(torch.tensor([[1.0, 2.0]]), torch.tensor([1]))]
    >>> scores = fisher_diagonal(model, batches, labels="true")
    >>> scores["weight"].tolist()
    [[0.25, 1.0], [0.25, 1.0]]
    >>> scores["bias"].tolist()
    [0.25, 0.25]
    """
    totals = {
        name: torch.empty_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    fisher_into(
        model, totals, batches, labels=labels, output=output, generator=generator, seed=seed
    )
    return totals


def fisher_into(
    model: nn.Module,
    totals: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, ...]],
    *,
    labels: Literal["sampled", "true"] = "sampled",
    output: Literal["log_prob", "logit"] = "log_prob",
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> None:
    """Overwrite tensors with the sensitivities of chosen parameters; see `fisher_diagonal`.

    Parameters
    ----------
    totals : Mapping[str, Tensor]
        For each chosen parameter, which must have `requires_grad`, a tensor of its shape on its
        device, for example a view of one flat vector.
    """
    _check_options(model, labels, output)
    seed = checked_seed(seed)
    if generator is not None:
        device = generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
    for total in totals.values():
        total.zero_()
    if totals:
        numbered = _numbered(batches, next(iter(totals.values())).device)
        with evaluation_mode(model), torch.enable_grad():
            _accumulate(model, totals, numbered, _Objective(labels, output, seed))


class _Objective:
    """The function of the logits that is differentiated, summed over examples."""

    def __init__(self, labels: str, output: str, seed: int) -> None:
        self._sampled, self._log_prob, self._seed = labels == "sampled", output == "log_prob", seed

    def labels(self, logits: Tensor, batch: _Batch) -> Tensor:
        """Return the label of each example, on the device of the logits."""
        if not self._sampled:
            return batch.labels.to(logits.device)
        # Inverse transform sampling, on the CPU so that all devices draw the same labels.
        cumulative = logits.detach().to("cpu", torch.float64).softmax(1).cumsum(1)
        threshold = keyed_uniform(batch.ids, self._seed)[:, None] * cumulative[:, -1:]
        drawn = (cumulative <= threshold).sum(1).clamp(max=logits.shape[1] - 1)
        return drawn.to(logits.device)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        values = logits.log_softmax(1) if self._log_prob else logits
        return values.gather(1, labels[:, None]).sum()


def _accumulate(
    model: nn.Module,
    totals: Mapping[str, Tensor],
    batches: Iterator[_Batch],
    objective: _Objective,
) -> None:
    """Add all batches by the fast path, or by the slow one if the fast one fails on the first."""
    add = _add_fast
    for index, batch in enumerate(batches):
        # The first batch is split into unequal parts: an activation whose first dimension is not
        # the batch may have the size of one part by chance, but not of both.
        parts = _unequal_parts(batch) if index == 0 else [batch]
        try:
            for part in parts:
                add(model, totals, part, objective)
        except UnsupportedModelError as error:
            if index > 0:
                raise UnsupportedModelError(
                    f"{error}, which the first batch did not show; give it at least 3 examples"
                ) from error
            for total in totals.values():
                total.zero_()
            add = _add_slow
            add(model, totals, batch, objective)


def _add_fast(
    model: nn.Module, totals: Mapping[str, Tensor], batch: _Batch, objective: _Objective
) -> None:
    parameters = dict(model.named_parameters())
    tape = SquaredGradientTape(
        {parameters[name]: total for name, total in totals.items()}, len(batch.images)
    )
    with tape:
        logits = model(batch.images)
    _check_logits(logits, batch)
    tape.backward(objective(logits, objective.labels(logits, batch)))


def _add_slow(
    model: nn.Module, totals: Mapping[str, Tensor], batch: _Batch, objective: _Objective
) -> None:
    parameters = dict(model.named_parameters())
    trainable = {name: parameters[name].detach() for name in totals}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = functional_call(model, values, (image[None],))
        return objective(logits, label[None])

    with torch.no_grad():
        logits = model(batch.images)
    _check_logits(logits, batch)
    labels = objective.labels(logits, batch)
    gradients: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0))
    step = max(1, _SLOW_PATH_BYTES // sum(t.numel() * t.element_size() for t in totals.values()))
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        with sdpa_kernel(SDPBackend.MATH):  # vmap runs the fused kernels one example at a time
            values = gradients(trainable, batch.images[part], labels[part])
        for name, gradient in values.items():
            totals[name].add_(gradient.to(totals[name].dtype).square().sum(0))


def _numbered(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[_Batch]:
    """Yield the batches, checked, with ids, and with images on the model's device."""
    start = 0
    for batch in batches:
        if len(batch) not in (2, 3):
            raise ValueError(
                f"batches must be (images, labels) or (images, labels, sample_ids), "
                f"got a tuple of {len(batch)}"
            )
        images, labels = batch[0], batch[1]
        ids = batch[2] if len(batch) == 3 else torch.arange(start, start + len(images))
        if labels.shape != (len(images),) or ids.shape != (len(images),):
            raise ValueError(
                f"labels and sample_ids must be one number per image, got shapes "
                f"{tuple(labels.shape)} and {tuple(ids.shape)} for {len(images)} images"
            )
        start += len(images)
        if len(images):
            yield _Batch(images.detach().to(device), labels, ids)
    if start == 0:
        raise ValueError(
            "batches holds no examples, so there is nothing to measure; an iterator that was read "
            "before is used up."
        )


def _unequal_parts(batch: _Batch) -> list[_Batch]:
    size = len(batch.images)
    cut = (size - 1) // 2
    parts = (slice(0, cut), slice(cut, size)) if cut else (slice(0, size),)
    return [_Batch(*(tensor[part] for tensor in batch)) for part in parts]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without autocast, and restore the modes afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device.type
    model.eval()
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _check_options(model: nn.Module, labels: str, output: str) -> None:
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {LABELS}, got {labels!r}")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"model must treat examples independently, but {name!r} normalises over the batch; "
                f"use GroupNorm, or BatchNorm with running statistics"
            )


def _check_logits(logits: Tensor, batch: _Batch) -> None:
    if logits.ndim != 2 or len(logits) != len(batch.images):
        raise ValueError(
            f"model must return logits (examples, classes), got shape {tuple(logits.shape)} "
            f"for {len(batch.images)} images"
        )
