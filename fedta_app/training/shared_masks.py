"""Masks that are calibrated once per machine, and shared by the runs whose inputs are equal.

What decides a mask to its last bit is its key in the cache (`fedta_app.cache`): the weights and the
head, the images in the order in which each client scores them, the method and its code, and the
machine. Clients that hold other images give the same mask but for rounding (`docs/method.md`), and
bits that depend on which run came first would not be repeatable; so such masks are not shared. As
with features, only runs with `trained-blocks` share at all.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedta_app.cache import Array
from fedta_app.keys.algorithm import ON_MASK
from fedta_app.masks import needs_scores
from fedta_app.models.weights_files import state_sha256
from fedta_app.runs.provenance import code_parts
from fedta_app.runs.used_code import SHARED
from fedta_app.training.datasets import machine_cache, of_nodes
from fedta_app.training.frozen import machine_key
from fedta_app.training.workspace import Workspace
from fedta_app.vectors import FlatMask

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
    *,
    elsewhere: bool = False,
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
    elsewhere : bool
        The scores come from other machines, whose arithmetic and honesty nobody here can vouch for:
        the mask is neither taken from an earlier run nor kept for others.
    """
    size = workspace.weights.vector.numel()

    def fill(array: Array) -> None:
        array[:] = np.frombuffer(find().to_bits(), np.uint8)

    try:
        config = workspace.config
        attacked = config.attackers > 0 and config.attack in ON_MASK
        # Sums of rounded scores under masks, and their bytes, are another thing than plain sums.
        own = workspace.stem is None or attacked or of_nodes(config) or config.secure_aggregation
        if elsewhere or own or not needs_scores(config.mask_rule):
            return find()
        key = _key(workspace, positions, calibration_round, before)
        bits = machine_cache(workspace.config).array(key, (-(-size // 8),), "uint8", fill)
    except IncompleteMaskError as found:
        return found.mask
    return FlatMask.from_bits(bits.tobytes(), size, workspace.device)


def _key(
    workspace: Workspace, positions: Iterable[Tensor], number: int, before: FlatMask | None
) -> dict[str, Any]:
    """Return everything that decides the bits of the mask after a round of that number."""
    config = workspace.config
    rule = f"mask-rule {config.mask_rule}"
    code = {part: sha for part, sha in code_parts(config).items() if part in (SHARED, rule)}
    images = hashlib.sha256()
    for owned in positions:
        images.update(len(owned).to_bytes(8, "big") + owned.cpu().numpy().tobytes())
    return {
        "kind": "mask",
        "code": code,
        **machine_key(config, workspace.device),
        "kernels": workspace.kernels,
        "threads": torch.get_num_threads(),
        "model-state": state_sha256(workspace.built.model.state_dict()),
        "layout": workspace.layout,
        "data": workspace.data.digest,
        "image-size": workspace.built.image_size,
        "normalisation": workspace.normalisation,
        "images": images.hexdigest(),
        "round": number,
        "before": hashlib.sha256(before.to_bits()).hexdigest() if before else "",
        **{name: getattr(config, name) for name in _DECIDING},
    }
