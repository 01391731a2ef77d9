"""Calibration of a run's mask: the images that are scored, their scores, and the mask.

The method is in `fedta_app.masks.calibration`; vectors are in the order of `Workspace.weights`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.data.loading import ImageSet
from fedta_app.device.cuda import repeatable
from fedta_app.errors import RunError
from fedta_app.keys.algorithm import ON_MASK
from fedta_app.masks import Calibration, client_scores, rule_named
from fedta_app.progress import counting
from fedta_app.seeding import derive_seed, torch_generator
from fedta_app.sensitivity import Trusted
from fedta_app.training.attacks import attack_of, poisoned_scores
from fedta_app.training.shared_masks import shared_mask
from fedta_app.training.workspace import Workspace
from fedta_app.vectors import FlatMask

_LARGER = 1024.0  # times the server's, the scores of a client whose images are unlike its own
_SERVER = -1  # stands for the server where a partition id is expected
# The model of a workspace stays as it was built, and is scored for many clients.
_TRUSTED: WeakKeyDictionary[torch.nn.Module, Trusted] = WeakKeyDictionary()


@dataclass(frozen=True)
class ScoringBatches:
    """Batches (inputs, labels, sample ids) of images, which can be iterated repeatedly.

    The id of a training image is its position in the training split, so that the label drawn for
    it is the same on whichever client it lies.
    """

    workspace: Workspace
    images: ImageSet
    ids: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        size = self.workspace.config.calibration_batch_size
        with counting("images", len(self.images)) as done:
            for start in range(0, len(self.images), size):
                batch = slice(start, start + size)
                inputs = self.workspace.inputs(self.images.images[batch])
                yield inputs, self.images.labels[batch], self.ids[batch]
                done.add(len(inputs))


def scored_positions(
    workspace: Workspace, partition_id: int, asked: Iterable[int] | None = None
) -> Tensor:
    """Return the positions, in the training split, of the images that a client scores.

    Where scores are summed over clients, an image that clients share is scored once. A rule that
    compares clients (by a statistic of each) takes all images of each.

    Parameters
    ----------
    asked : iterable of int, optional
        The clients over which scores are summed; all by default.
    """
    config = workspace.config
    compared = config.mask_rule != "none" and rule_named(config.mask_rule).statistic is not None
    if config.mask_scope == "global" and not compared:
        positions = workspace.counted_positions(partition_id, asked)
    else:
        positions = workspace.client_positions(partition_id)
    return positions[_some(workspace, len(positions), partition_id)]


def client_batches(
    workspace: Workspace, partition_id: int, asked: Iterable[int] | None = None
) -> ScoringBatches:
    """Return the batches of the images that a client scores, as `scored_positions` says."""
    positions = scored_positions(workspace, partition_id, asked)
    # Nodes with images of their own number them from 0, each for itself.
    ids = positions + (workspace.node or 0) * 2**32
    return ScoringBatches(workspace, workspace.plain.train.subset(positions), ids)


def server_batches(workspace: Workspace) -> ScoringBatches:
    """Return the batches for the server's scores: validation images; if centralised, training."""
    train, validation = workspace.plain.train, workspace.plain.val
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
    workspace: Workspace,
    batches: ScoringBatches,
    mask: FlatMask | None,
    calibration_round: int,
    *,
    owner: int | None = None,
) -> Tensor:
    """Return the scores that a client sends in a round; see `fedta_app.masks.client_scores`.

    Parameters
    ----------
    mask : FlatMask or None
        The mask of the previous round; weights outside it are scaled by `soft-value`.
    owner : int, optional
        The client, which may be hostile.
    """
    config, weights = workspace.config, workspace.weights
    with repeatable(workspace.device, config.deterministic):
        found = client_scores(
            workspace.model,
            weights.layout,
            [weights.vector],
            batches,
            rule_named(config.mask_rule),
            round=calibration_round,
            mask=mask,
            soft_value=config.soft_value,
            seed=config.seed,
            labels=config.sensitivity_labels,  # type: ignore[arg-type]
            output=config.sensitivity_output,  # type: ignore[arg-type]
            trusted=_TRUSTED.setdefault(workspace.model, {}),
        )
    hostile = owner is not None and attack_of(config, owner) in ON_MASK
    return poisoned_scores(found) if hostile else found


def largest_score(
    workspace: Workspace, mask: FlatMask | None, calibration_round: int, num_images: int
) -> float:
    """Return a number above every score that a client with so many images is likely to send.

    It is a thousand times what it would send if its images were like the server's, of which at most
    100 validation images are measured. A soft mask can raise scores a thousandfold from one round
    to the next, so that no constant would do.
    """
    batches = server_batches(workspace)
    chosen = torch.linspace(0, len(batches.ids) - 1, min(100, len(batches.ids))).long()
    some = ScoringBatches(workspace, batches.images.subset(chosen), batches.ids[chosen])
    found = float(scores(workspace, some, mask, calibration_round).abs().max()) / len(chosen)
    return _LARGER * found * num_images or 1.0  # 1 where all scores are zero


def calibration(
    workspace: Workspace,
    partition_id: int | None = None,
    *,
    round: int = 0,
    mask: FlatMask | None = None,
) -> Calibration:
    """Return the calibration that the configuration describes.

    Parameters
    ----------
    partition_id : int, optional
        The client whose own mask is calibrated: the rule "random" draws one for each.
    round, mask
        How many rounds are done, and the mask after them.
    """
    config, weights = workspace.config, workspace.weights
    seed = config.seed
    if partition_id is not None:
        seed = derive_seed(config.seed, "own mask", partition_id)
    return Calibration(
        rule_named(config.mask_rule),
        weights.layout,
        weights.vector,
        sparsity=None if config.score_threshold else config.sparsity,
        threshold=config.score_threshold or None,
        num_rounds=config.calibration_rounds,
        seed=seed,
        scope=config.sparsity_scope,
        round=round,
        mask=mask,
    )


def require_trained(config: RunConfig, mask: FlatMask) -> FlatMask:
    """Return the mask, or raise RunError if it trains no weight."""
    if not mask.num_trained:
        by = "score-threshold" if config.score_threshold else "sparsity"
        value = config.score_threshold or config.sparsity
        raise RunError(f"the mask trains no weight at all: {by} = {value:g} leaves none")
    return mask


def own_mask(
    workspace: Workspace, partition_id: int | None, total: Tensor | None = None
) -> FlatMask:
    """Return a mask calibrated on the images of a client, or with None on the server's.

    Parameters
    ----------
    total : Tensor of shape (N,), optional
        The sensitivities of all clients, for a rule that ranks a client's own against them.
    """
    if partition_id is None:
        batches = server_batches(workspace)
    else:
        batches = client_batches(workspace, partition_id)
    against_others = rule_named(workspace.config.mask_rule).against_others

    def measured(mask: FlatMask | None, calibration_round: int) -> Tensor:
        own = scores(workspace, batches, mask, calibration_round, owner=partition_id)
        if against_others is None or total is None:
            return own
        return against_others(own, total.to(own.device))  # the sum came from the server's CPU

    def find() -> FlatMask:
        return calibration(workspace, partition_id).run(measured)

    one_for_all = partition_id is None  # those of a hundred clients would only fill the disk
    found = shared_mask(workspace, [batches.ids], 0, None, find) if one_for_all else find()
    return require_trained(workspace.config, found)
