"""Masks of a run: what is scored, on which images, and which mask follows.

The rounds are those of TaLoS (Iurada, Ciccone, Tommasi, ICLR 2025, arXiv 2504.02620), see
`fedta_app.masks.calibration`; vectors are in the order of `Workspace.weights`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedta_app.data.loading import ImageSet
from fedta_app.device.cuda import repeatable
from fedta_app.errors import RunError
from fedta_app.masks.building import build_mask, needs_scores, next_mask
from fedta_app.masks.calibration import calibration_generator, softened
from fedta_app.masks.sets import flatten
from fedta_app.seeding import derive_seed, torch_generator
from fedta_app.sensitivity.fisher import fisher_diagonal
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.mask import FlatMask

_SERVER = -1  # in place of a partition id


@dataclass(frozen=True)
class ScoringBatches:
    """Batches (inputs, labels, sample ids) of some images; they can be read repeatedly.

    The ids of training images are positions in the training split: the label that is drawn for an
    image is the same on whichever client it lies.
    """

    workspace: Workspace
    images: ImageSet
    ids: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = self.workspace.config.calibration_batch_size
        for start in range(0, len(self.images), size):
            batch = slice(start, start + size)
            inputs = self.workspace.inputs(self.images.images[batch])
            yield inputs, self.images.labels[batch], self.ids[batch]


def client_batches(workspace: Workspace, partition_id: int) -> ScoringBatches:
    """Return what a client scores on."""
    positions = workspace.client_positions(partition_id)
    positions = positions[_some(workspace, len(positions), partition_id)]
    return ScoringBatches(workspace, workspace.data.train.subset(positions), positions)


def server_batches(workspace: Workspace) -> ScoringBatches:
    """Return what the server scores on: its validation images; centralised, the training images."""
    train, validation = workspace.data.train, workspace.data.val
    central = workspace.config.engine == "centralized"
    images, first_id = (train, 0) if central else (validation, len(train))
    kept = _some(workspace, len(images), _SERVER)
    return ScoringBatches(workspace, images.subset(kept), first_id + kept)


def _some(workspace: Workspace, available: int, owner: int) -> Tensor:
    """Return positions of at most `calibration-examples` of the images, drawn once per owner."""
    positions = torch.arange(available)
    most = workspace.config.calibration_examples
    if most and most < available:
        generator = torch_generator(workspace.config.seed, "calibration-examples", owner)
        positions = torch.randperm(available, generator=generator)[:most].sort().values
    return positions.to(workspace.device)


def scores(
    workspace: Workspace, batches: ScoringBatches, mask: FlatMask | None, calibration_round: int
) -> Tensor:
    """Return sensitivities summed over the images, of shape (N,).

    Weights that earlier rounds dropped are softened meanwhile. For the rule "agreement" the mean
    gradient, of shape (N,), follows in the same vector.
    """
    config, weights = workspace.config, workspace.weights
    named = None if mask is None else weights.views(mask.mask)
    same_bits = repeatable(workspace.device, config.deterministic)
    with same_bits, softened(workspace.model, named, config.soft_value):
        found = fisher_diagonal(
            workspace.model,
            batches,
            labels=config.sensitivity_labels,  # type: ignore[arg-type]
            output=config.sensitivity_output,  # type: ignore[arg-type]
            generator=calibration_generator(config.seed, calibration_round),
        )
        parts = [flatten(found, weights.names)]
        if config.mask_rule == "agreement":
            parts.append(_mean_gradient(workspace, batches))
    return torch.cat(parts)


def _mean_gradient(workspace: Workspace, batches: ScoringBatches) -> Tensor:
    model = workspace.model
    model.eval()
    parameters = [model.get_parameter(name) for name in workspace.weights.names]
    total = torch.zeros_like(workspace.weights.vector)
    for inputs, labels, _ in batches:
        loss = cross_entropy(model(inputs), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, parameters)
        total += torch.cat([gradient.flatten() for gradient in gradients])
    return total / len(batches.images)


def mask_of_round(
    workspace: Workspace,
    vector: Tensor | None,
    previous: FlatMask | None,
    calibration_round: int,
    *,
    owner: int = _SERVER,
) -> FlatMask:
    """Return the mask after a round, from its scores (None for rules that need none).

    Parameters
    ----------
    owner : int
        The client whose own mask it is: the rule "random" draws another for each.
    """
    config, weights = workspace.config, workspace.weights
    parameters = weights.views(weights.vector)
    named = None if vector is None else weights.views(vector)
    seed = config.seed if owner == _SERVER else derive_seed(config.seed, "own mask", owner)
    if config.score_threshold or vector is None:
        by_score = {"threshold": config.score_threshold} if config.score_threshold else {}
        by_share = {} if config.score_threshold else {"sparsity": config.sparsity}
        mask = build_mask(
            parameters, rule=config.mask_rule, scores=named, seed=seed,
            scope=config.sparsity_scope, **by_score, **by_share,  # type: ignore[arg-type]
        )  # fmt: skip
    else:
        mask = next_mask(
            parameters,
            named,
            None if previous is None else weights.views(previous.mask),
            rule=config.mask_rule,
            sparsity=config.sparsity,
            round=calibration_round,
            num_rounds=config.calibration_rounds,
            seed=seed,
            scope=config.sparsity_scope,  # type: ignore[arg-type]
        )
    flat = FlatMask.of(mask, weights)
    if not flat.num_trained:
        by = "score-threshold" if config.score_threshold else "sparsity"
        value = config.score_threshold or config.sparsity
        raise RunError(f"the mask trains no weight at all: {by} = {value:g} leaves none")
    return flat


def own_mask(workspace: Workspace, partition_id: int | None) -> FlatMask:
    """Calibrate a mask in all its rounds on one client's images; with None, on the server's."""
    owner = _SERVER if partition_id is None else partition_id
    if not needs_scores(workspace.config.mask_rule):
        return mask_of_round(workspace, None, None, 1, owner=owner)
    batches = (
        server_batches(workspace)
        if partition_id is None
        else client_batches(workspace, partition_id)
    )
    mask: FlatMask | None = None
    for calibration_round in range(1, workspace.config.calibration_rounds + 1):
        found = scores(workspace, batches, mask, calibration_round)
        mask = mask_of_round(workspace, found, mask, calibration_round, owner=owner)
    assert mask is not None
    return mask
