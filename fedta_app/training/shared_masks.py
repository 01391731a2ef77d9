"""Masks that are calibrated once per machine, and shared by the runs whose inputs are equal.

What decides a mask to its last bit is its key in the cache (`fedta_app.cache`): the weights and the
head, the images in the order in which each client scores them, the method, and the machine. Clients
that hold other images give the same mask but for rounding (`docs/method.md`), and bits that depend
on which run came first would not be repeatable; so such masks are not shared. As with features,
only runs with `trained-blocks` share at all.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from fedta_app.cache import Array
from fedta_app.masks import needs_scores
from fedta_app.models.weights_files import state_sha256
from fedta_app.training.datasets import machine_cache
from fedta_app.training.frozen import machine_key
from fedta_app.training.workspace import Workspace
from fedta_app.vectors import FlatMask

_VERSION = 1  # raise it where scores or masks are computed in another way than before
_DECIDING = (
    "mask_rule", "mask_scope", "sparsity", "sparsity_scope", "score_threshold",
    "calibration_rounds", "calibration_batch_size", "soft_value", "sensitivity_labels",
    "sensitivity_output", "deterministic", "seed",
)  # fmt: skip


class IncompleteMaskError(Exception):
    """Raised in place of returning a mask that lacks the scores of clients that failed."""

    def __init__(self, mask: FlatMask) -> None:
        super().__init__("some clients failed")
        self.mask = mask


def shared_mask(
    workspace: Workspace,
    positions: Iterable[Tensor],
    calibration_round: int,
    before: FlatMask | None,
    find: Callable[[], FlatMask],
) -> FlatMask:
    """Return the mask after a calibration round: that of an earlier run, or what `find` returns.

    The model holds the weights and the head that are scored.

    Parameters
    ----------
    positions : iterable of int64 Tensor
        The positions of the images that each owner scores, in the order of the owners.
    before : FlatMask or None
        The mask of the round before.
    find : callable
        Calibrates the mask; called if no run on this machine has done so. A mask that it gives by
        raising IncompleteMaskError is returned, and not kept for others.
    """
    try:
        if workspace.stem is None or not needs_scores(workspace.config.mask_rule):
            return find()
        return _from_cache(workspace, positions, calibration_round, before, find)
    except IncompleteMaskError as found:
        return found.mask


def _from_cache(
    workspace: Workspace,
    positions: Iterable[Tensor],
    calibration_round: int,
    before: FlatMask | None,
    find: Callable[[], FlatMask],
) -> FlatMask:
    config = workspace.config
    images = hashlib.sha256()
    for owned in positions:
        images.update(len(owned).to_bytes(8, "big") + owned.cpu().numpy().tobytes())
    key = {
        "kind": "mask",
        "version": _VERSION,
        **machine_key(config, workspace.device),
        "kernels": workspace.kernels,
        "threads": torch.get_num_threads(),
        "model-state": state_sha256(workspace.built.model.state_dict()),
        "layout": workspace.layout,
        "data": workspace.data.digest,
        "image-size": workspace.built.image_size,
        "normalisation": workspace.normalisation,
        "images": images.hexdigest(),
        "round": calibration_round,
        "before": hashlib.sha256(before.to_bits()).hexdigest() if before else "",
        **{name: getattr(config, name) for name in _DECIDING},
    }

    def fill(array: Array) -> None:
        array[:] = np.frombuffer(find().to_bits(), np.uint8)

    size = workspace.weights.vector.numel()
    bits = machine_cache(config).array(key, (-(-size // 8),), "uint8", fill)
    return FlatMask.from_bits(bits.tobytes(), size, workspace.device)
