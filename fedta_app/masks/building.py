"""Gradient masks: which weights are trained, chosen once by a rule and calibrated in rounds.

TaLoS (Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620): train only the weights to which the
model's output is least sensitive, found in several rounds that each keep a smaller part of what
the round before kept. After round r of R the trained share is density^(r/R). Weights dropped so
far are multiplied by `soft_value` while the next round's sensitivities are measured; without that
(soft_value 1) and with fixed labels any number of rounds gives the mask of one round. Fine-tuning
starts from the original weights.

True = trained; density = trained share; sparsity = frozen share. The other rules are controls, but
"agreement", which is our own, see `fedta_app.masks.agreement`.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from operator import add
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedta_app.masks.calibration import (
    calibration_density,
    calibration_generator,
    maskable,
    softened,
)
from fedta_app.masks.sets import (
    apportion,
    check_alike,
    check_mask,
    flatten,
    round_density,
    select_smallest,
    unflatten,
)
from fedta_app.seeding import torch_generator
from fedta_app.sensitivity.fisher import fisher_diagonal

Scope = Literal["global", "layer"]


class _Rule(NamedTuple):
    ranked_by: Literal["scores", "magnitudes", "random numbers"]
    takes_largest: bool


_RULES = {
    "least-sensitive": _Rule("scores", False),
    "most-sensitive": _Rule("scores", True),
    "lowest-magnitude": _Rule("magnitudes", False),
    "highest-magnitude": _Rule("magnitudes", True),
    "random": _Rule("random numbers", False),
    "agreement": _Rule("scores", False),
}
MASK_RULES: tuple[str, ...] = tuple(_RULES)


def needs_scores(rule: str) -> bool:
    """Return whether the rule ranks by scores, which must then be measured on data.

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    if rule not in _RULES:
        raise ValueError(f"rule is {rule!r}; it must be one of {', '.join(MASK_RULES)}.")
    return _RULES[rule].ranked_by == "scores"


def build_mask(
    parameters: Mapping[str, Tensor],
    *,
    rule: str,
    sparsity: float | None = None,
    scores: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    scope: Scope = "global",
    threshold: float | None = None,
    alive: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the mask of the entries that the rule trains.

    Parameters
    ----------
    parameters
        Name -> tensor, the maskable parameters only (no head). Their order is the order in which
        ties are broken, and the order of the mask.
    rule
        One of `MASK_RULES`.
    sparsity
        Frozen share. Exactly `round_density(sparsity, N)` of the N entries are trained.
    scores
        Name -> tensor of the parameter's shape, for the rules that need them: sensitivities, or
        `agreement_scores` for "agreement". Names that are no parameter's are ignored; infinities
        are allowed, NaN is not.
    seed
        Of the rule "random", which numbers each entry by (seed, name, position), whatever else
        is in the mapping; give each client a seed of its own for a random mask of its own.
    scope
        "global" ranks all entries together; "layer" ranks within each tensor, each getting its
        share of the same total (largest remainders).
    threshold
        In place of `sparsity`: train every entry with a score (or magnitude) <= threshold, for
        the "most" and "highest" rules >= threshold. See `density` for the density it yields.
    alive
        Mask of the entries that may be chosen; all by default.

    Raises
    ------
    ValueError
        If an argument is missing, unknown, out of range, or does not fit the parameters.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope is {scope!r}; it must be 'global' or 'layer'.")
    ranks = _ranks(parameters, rule, scores, seed)
    candidates = torch.ones_like(ranks, dtype=torch.bool)
    if alive is not None:
        check_mask(alive, parameters, "alive")
        candidates = flatten(alive, parameters)
    if threshold is not None and sparsity is None:
        return unflatten(candidates & _within(ranks, threshold, rule), parameters)
    if sparsity is None or threshold is not None:
        raise ValueError(
            f"sparsity is {sparsity} and threshold is {threshold}; give exactly one of the two."
        )
    layers = [tensor.numel() for tensor in parameters.values()]
    sizes = [ranks.numel()] if scope == "global" else layers
    return unflatten(_choose(ranks, candidates, sizes, sparsity), parameters)


def next_mask(
    parameters: Mapping[str, Tensor],
    scores: Mapping[str, Tensor] | None,
    previous_mask: Mapping[str, Tensor] | None,
    *,
    rule: str,
    sparsity: float,
    round: int,
    num_rounds: int,
    seed: int = 0,
    scope: Scope = "global",
) -> dict[str, Tensor]:
    """Return the mask after one round of calibration, a subset of the mask of the round before.

    The server calls it with the scores summed over clients, `calibrate_mask` with those of one
    data set. The parameters are the original ones, never the softened. The last round has exactly
    `round_density(sparsity, N)` trained entries.

    Parameters
    ----------
    previous_mask
        What the round before returned; None in round 1.

    Raises
    ------
    ValueError
        See `build_mask` and `calibration_density`.
    """
    if (previous_mask is None) != (round == 1):
        given = "missing" if previous_mask is None else "given"
        raise ValueError(f"previous_mask is {given} in round {round}; only round 1 has none.")
    return build_mask(
        parameters,
        rule=rule,
        sparsity=1 - calibration_density(round, num_rounds, 1 - sparsity),
        scores=scores,
        seed=seed,
        scope=scope,
        alive=previous_mask,
    )


def calibrate_mask(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    rule: str,
    sparsity: float,
    num_rounds: int,
    soft_value: float = 0.1,
    seed: int = 0,
    scope: Scope = "global",
    labels: Literal["sampled", "true"] = "sampled",
    output: Literal["log_prob", "logit"] = "log_prob",
    exclude: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Return the mask of a model, calibrated in rounds on one data set.

    The model's weights and mode are the same afterwards, bit for bit. Rules that need no scores
    read no batch. The rule "agreement" sees one client here, which makes it "least-sensitive".

    Parameters
    ----------
    model
        Maps images to logits. See `maskable` for the parameters that get a mask.
    batches
        Tuples (images, labels) or (images, labels, sample_ids), read once per round.
    rule, sparsity, seed, scope
        As in `build_mask`; the seed is also that of the drawn labels.
    num_rounds
        Number of calibration rounds, at least 1.
    soft_value
        Factor on dropped weights while later rounds are scored, in [0, 1].
    labels, output
        As in `fedta_app.sensitivity.fisher.fisher_diagonal`.
    exclude
        As in `maskable`.

    Raises
    ------
    ValueError
        See `build_mask`, `soften` and `fisher_diagonal`.
    """
    if num_rounds < 1:
        raise ValueError(f"num_rounds is {num_rounds}; it must be at least 1.")
    parameters = maskable(model, exclude)
    if not needs_scores(rule):
        return build_mask(parameters, rule=rule, sparsity=sparsity, seed=seed, scope=scope)
    if isinstance(batches, Iterator):  # could be read in one round only
        batches = list(batches)
    mask: dict[str, Tensor] | None = None
    for round in range(1, num_rounds + 1):
        with softened(model, mask, soft_value):
            generator = calibration_generator(seed, round)
            scores = fisher_diagonal(
                model, batches, labels=labels, output=output, generator=generator
            )
        mask = next_mask(
            parameters,
            scores,
            mask,
            rule=rule,
            sparsity=sparsity,
            round=round,
            num_rounds=num_rounds,
            seed=seed,
            scope=scope,
        )
    assert mask is not None
    return mask


def _ranks(
    parameters: Mapping[str, Tensor], rule: str, scores: Mapping[str, Tensor] | None, seed: int
) -> Tensor:
    """Return one number per entry in flat order, float32 or float64; the rule trains the least."""
    scored = needs_scores(rule)
    kind = _RULES[rule]
    if kind.ranked_by == "random numbers":
        return flatten({name: _uniforms(seed, name, t) for name, t in parameters.items()})
    if not scored:
        source = parameters
    elif scores is None:
        raise ValueError(f"scores is None; the rule {rule!r} needs a score for every entry.")
    else:
        check_alike(scores, parameters, "scores")
        source = scores
    ranks = _as_float(flatten(source, parameters))
    if ranks.isnan().any():
        name = next(name for name in parameters if source[name].isnan().any())
        raise ValueError(f"the {kind.ranked_by} of {name!r} contain NaN; they must be numbers.")
    if not scored:
        ranks.abs_()
    return ranks.neg_() if kind.takes_largest else ranks


def _uniforms(seed: int, name: str, like: Tensor) -> Tensor:
    return torch.rand(like.numel(), generator=torch_generator(seed, "mask", name))


def _as_float(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.double()


def _within(ranks: Tensor, threshold: float, rule: str) -> Tensor:
    if _RULES[rule].ranked_by == "random numbers" or math.isnan(threshold):
        raise ValueError(
            f"threshold is {threshold} with the rule {rule!r}; it must be a number, "
            "and the rule must rank by scores or magnitudes."
        )
    return ranks <= (-threshold if _RULES[rule].takes_largest else threshold)


def _choose(ranks: Tensor, candidates: Tensor, sizes: list[int], sparsity: float) -> Tensor:
    """Choose the exact number of candidates with the least ranks, layer by layer of these sizes."""
    available = [int(layer.sum()) for layer in torch.split(candidates, sizes)]
    total = round_density(sparsity, ranks.numel())
    if total > sum(available):
        raise ValueError(
            f"sparsity is {sparsity}, which trains {total} entries; alive has {sum(available)}."
        )
    counts = [min(pair) for pair in zip(apportion(total, sizes), available, strict=True)]
    # What a layer cannot take because too few of it are alive goes to layers with room.
    room = [most - count for most, count in zip(available, counts, strict=True)]
    counts = list(map(add, counts, apportion(total - sum(counts), room)))
    layers = torch.split(ranks.masked_fill_(~candidates, math.nan), sizes)
    return torch.cat(list(map(select_smallest, layers, counts)))
