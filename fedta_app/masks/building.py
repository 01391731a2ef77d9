"""The masks of named parameters: the entry points of library users."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

from torch import Tensor, nn

from fedta_app.masks.calibration import Calibration, client_scores
from fedta_app.masks.rule import Batches, Entries
from fedta_app.masks.rules import rule_named
from fedta_app.masks.selection import Scope, select
from fedta_app.seeding import checked_seed
from fedta_app.sensitivity import Trusted
from fedta_app.vectors import FlatMask, Layout


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
        Name -> tensor of the parameter's shape, for the rules that need them: sensitivities, as
        `fedta_app.sensitivity.fisher_diagonal` returns them. Names that are no parameter's are
        ignored; infinities are allowed, NaN is not.
    seed
        Of the rule "random", which numbers each entry by (seed, name, position), whatever else
        is in the mapping; give each client a seed of its own for a random mask of its own.
    scope
        "global" ranks all entries together; "layer" ranks within each tensor, each getting its
        share of the same total (largest remainders).
    threshold
        In place of `sparsity`: train every entry with a score (or magnitude) <= threshold, for
        the "most" and "highest" rules >= threshold.
    alive
        Mask of the entries that may be chosen; all by default.

    Raises
    ------
    ValueError
        If an argument is missing, unknown, out of range, or does not fit the parameters.

    Examples
    --------
    Train the half of the entries with the lowest scores:

    >>> import torch
    >>> from fedta_app.masks import build_mask
    >>> parameters = dict(torch.nn.Linear(2, 2).named_parameters())
    >>> scores = {"weight": torch.tensor([[3.0, 1.0], [4.0, 5.0]]), "bias": torch.tensor([2.0, 0])}
    >>> mask = build_mask(parameters, rule="least-sensitive", sparsity=0.5, scores=scores)
    >>> mask["weight"].tolist()
    [[False, True], [False, False]]
    >>> mask["bias"].tolist()
    [True, True]
    """
    layout = Layout.of(parameters)
    entries = Entries(
        layout,
        layout.flatten(parameters, "parameters", "cpu"),
        None if scores is None else layout.flatten(scores, "scores", "cpu"),
        checked_seed(seed),
    )
    candidates = None
    if alive is not None:
        candidates = FlatMask(layout.flatten(alive, "alive", "cpu")).mask
    chosen = select(
        rule_named(rule), entries, sparsity=sparsity, threshold=threshold, scope=scope,
        alive=candidates,
    )  # fmt: skip
    return _named(layout, chosen, parameters)


def calibrate_mask(
    model: nn.Module,
    batches: Batches,
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

    The rounds are those of TaLoS, see `fedta_app.masks.calibration`. The model's weights and mode
    are the same afterwards, bit for bit. Rules that need no scores read no batch. Rules whose
    clients send a statistic see one client here; that makes "agreement" equal "least-sensitive".
    A rule that ranks a client's scores against those of others is refused, as there are no others.

    Parameters
    ----------
    model
        Maps images to logits. See `maskable` for the parameters that get a mask.
    batches
        Tuples (images, labels) or (images, labels, sample_ids), read at least once per round.
    rule, sparsity, seed, scope
        As in `build_mask`; the seed is also that of the drawn labels.
    num_rounds
        Number of calibration rounds, at least 1.
    soft_value
        Factor on dropped weights while later rounds are scored, in [0, 1].
    labels, output
        As in `fedta_app.sensitivity.fisher_diagonal`.
    exclude
        As in `maskable`.

    Raises
    ------
    ValueError
        If an argument is unknown, out of range, or does not fit the model; or if there is no
        evidence for a rule that needs scores, because a round found no examples or only zeros.

    Examples
    --------
    Find the tenth of a small network's weights that its output depends on least:

    >>> import torch
    >>> from fedta_app.masks import calibrate_mask
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3))
    >>> batches = [(torch.randn(16, 8), torch.randint(0, 3, (16,)))]
    >>> mask = calibrate_mask(
    ...     model, batches, rule="least-sensitive", sparsity=0.9, num_rounds=4, exclude=["2"]
    ... )
    >>> list(mask), sum(int(trained.sum()) for trained in mask.values())
    (['0.weight', '0.bias'], 9)
    """
    if rule_named(rule).against_others is not None:
        raise ValueError(
            f"rule is {rule!r}, which compares a client with others; here is only one."
        )
    parameters = maskable(model, exclude)
    layout = Layout.of(parameters)
    calibration = Calibration(
        rule_named(rule),
        layout,
        layout.flatten(parameters, "parameters"),
        sparsity=sparsity,
        num_rounds=num_rounds,
        seed=seed,
        scope=scope,
    )
    if isinstance(batches, Iterator) and calibration.rule.needs_scores:
        batches = list(batches)  # the iterator could be read in one round only

    trusted: Trusted = {}

    def measure(mask: FlatMask | None, round: int) -> Tensor:
        return client_scores(
            model,
            layout,
            list(parameters.values()),
            batches,
            calibration.rule,
            round=round,
            mask=mask,
            soft_value=soft_value,
            seed=seed,
            labels=labels,
            output=output,
            trusted=trusted,
        )

    return _named(layout, calibration.run(measure).mask, parameters)


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


def _named(layout: Layout, mask: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a mask (N,) into tensors of their own, each on the device of the parameter."""
    return {
        name: view.to(like[name].device, copy=True) for name, view in layout.views(mask).items()
    }
