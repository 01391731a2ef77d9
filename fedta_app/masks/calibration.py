"""What the rounds of mask calibration have in common on the server and on clients.

TaLoS (Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620): after round r of R the trained share
is density^(r/R), and while a round's sensitivities are measured, the weights that earlier rounds
dropped are multiplied by a soft value (0.1 in the paper's published code). A client's part of a
round is

    with softened(model, previous_mask, soft_value):
        scores = fisher_diagonal(model, batches, generator=calibration_generator(seed, round))

The server sums the scores of the clients and calls `fedta_app.masks.next_mask`; a single machine
calls `fedta_app.masks.calibrate_mask`, and both find the same mask.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedta_app.seeding import torch_generator


def calibration_density(round: int, num_rounds: int, density: float) -> float:
    """Return the trained share after round 1, 2, ... of `num_rounds`: density^(round/num_rounds).

    Raises
    ------
    ValueError
        If the round is not one of 1 to `num_rounds`.
    """
    if not 1 <= round <= num_rounds:
        raise ValueError(f"round is {round}; it must be between 1 and num_rounds ({num_rounds}).")
    return density if round == num_rounds else density ** (round / num_rounds)


def calibration_generator(seed: int, round: int) -> torch.Generator:
    """Return the generator of the labels drawn in a round: the same on the server and all clients.

    Give it to `fisher_diagonal`; every round draws afresh, and draws by sample.
    """
    return torch_generator(seed, "calibration-labels", round)


def soften(
    parameters: Mapping[str, Tensor], mask: Mapping[str, Tensor], soft_value: float
) -> dict[str, Tensor]:
    """Return the parameters with the entries outside the mask multiplied by `soft_value`.

    Kept entries keep their bits, and parameters without a mask are passed through.

    Raises
    ------
    ValueError
        If `soft_value` is outside [0, 1].
    """
    if not 0 <= soft_value <= 1:
        raise ValueError(f"soft_value is {soft_value}; it must be between 0 and 1.")
    return {
        name: torch.where(mask[name], value, value * soft_value) if name in mask else value
        for name, value in ((name, tensor.detach()) for name, tensor in parameters.items())
    }


@contextmanager
def softened(
    model: nn.Module, mask: Mapping[str, Tensor] | None, soft_value: float
) -> Iterator[None]:
    """Soften the model's parameters for the time of a `with` block, in place.

    Afterwards every weight has its old bits, whatever happened in the block. No mask, no change.
    """
    named = dict(model.named_parameters())
    parameters = {name: named[name] for name in mask or {}}
    originals = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    try:
        _write(parameters, soften(parameters, mask or {}, soft_value))
        yield
    finally:
        _write(parameters, originals)


def maskable(model: nn.Module, exclude: Collection[str] | None = None) -> dict[str, nn.Parameter]:
    """Return the parameters that a mask covers: those with `requires_grad`, without the head.

    Parameters
    ----------
    exclude
        Names of modules or parameters to leave out with all that is inside them. By default the
        head, if the model names it as timm's models do (`get_classifier`).
    """
    if exclude is None:
        head = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
        exclude = [name for name, module in model.named_modules() if module is head]
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and not any(name == prefix or name.startswith(f"{prefix}.") for prefix in exclude)
    }


@torch.no_grad()
def _write(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
