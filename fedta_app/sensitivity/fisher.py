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

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedta_app.seeding import checked_seed
from fedta_app.sensitivity.layers import BatchStatisticsError
from fedta_app.sensitivity.paths import Batch, Objective, Trusted, accumulate
from fedta_app.sensitivity.state import evaluation_mode

LABELS = ("sampled", "true")
OUTPUTS = ("log_prob", "logit")


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

    The model must map images (B, ...) to logits (B, C). It is run in evaluation mode and restored
    afterwards, attributes and buffers included; no `.grad` is written. Autocast is off, because
    squares of half-precision gradients underflow.

    The result is that of a loop that runs every example alone. Models made of linear layers,
    convolutions, layer, group and RMS norms, and parameters that are added, multiplied or expanded
    (such as most vision transformers of timm) are differentiated a batch at a time, in about the
    time and memory of a backward pass. On two examples of the first batch (of each image size) this
    is compared with the loop. If the gradients of a parameter differ by more than 5 % of their
    norm, and for all other models, the loop does the work, and the reason is logged once.

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
        return one row of logits per example, or it normalises by statistics of the batch even in
        evaluation mode, so that an example has no gradient of its own.

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
    with torch.inference_mode(False):  # in which totals could not be added to
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
    trusted: Trusted | None = None,
) -> None:
    """Overwrite tensors with the sensitivities of chosen parameters; see `fisher_diagonal`.

    Parameters
    ----------
    totals : Mapping[str, Tensor]
        For each chosen parameter, which must have `requires_grad`, a tensor of its shape on its
        device, for example a view of one flat vector.
    trusted : dict, optional
        A dictionary that the caller keeps, empty at first, for calls with the same model and
        parameters: that the fast way agrees with the definition is then checked once for each
        shape of an image, and not in every call.
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
        objective = Objective(labels == "sampled", output == "log_prob", seed)
        with evaluation_mode(model):
            accumulate(model, totals, numbered, objective, {} if trusted is None else trusted)


def _numbered(batches: Iterable[tuple[Tensor, ...]], device: torch.device) -> Iterator[Batch]:
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
            yield Batch(images.detach().to(device), labels, ids)
    if start == 0:
        raise ValueError(
            "batches holds no examples, so there is nothing to measure; an iterator that was read "
            "before is used up."
        )


def _check_options(model: nn.Module, labels: str, output: str) -> None:
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {LABELS}, got {labels!r}")
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise BatchStatisticsError(repr(name))
