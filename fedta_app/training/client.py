"""The local training of a client."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedta_app.algorithms.base import NOTHING, PERSONAL, Algorithm, LocalRule, Vectors
from fedta_app.data.loading import ImageSet
from fedta_app.keys.algorithm import ON_UPDATES
from fedta_app.training.attacks import attack_, attack_of
from fedta_app.training.steps import evaluate, make_optimizer, steps_of, train_steps
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.mask import FlatMask

LAYERS = "layers"  # the name of a client's personal layers in its memory


@dataclass(frozen=True)
class LocalResult:
    """What a client returns after training, and the memory that it keeps.

    Attributes
    ----------
    update : Tensor of shape (P,)
        Local minus global weights, over the entries that were trained. It is valid only until
        the next client trains in this workspace, whose memory it may share.
    num_examples, steps : int
    loss : float
        Mean training loss over the steps.
    sent, memory : mapping of str to Tensor
        What the algorithm's local rule sends besides the update, and its new memory.
    start_loss : float
        Mean loss at the global weights, without augmentation, where the rule wants it; else 0.
    """

    update: Tensor
    num_examples: int
    steps: int
    loss: float
    sent: Vectors = field(default_factory=dict)
    memory: Vectors = field(default_factory=dict)
    start_loss: float = 0.0


def train_client(
    workspace: Workspace,
    global_weights: Tensor,
    *,
    partition_id: int,
    server_round: int,
    lr: float,
    local_steps: int | None = None,
    batch_size: int | None = None,
    algorithm: Algorithm | None = None,
    received: Vectors = NOTHING,
    memory: Vectors = NOTHING,
    down: FlatMask | None = None,
    up: FlatMask | None = None,
    outbox: Callable[[Tensor], Tensor] = lambda update: update,
) -> LocalResult:
    """Train the global weights on a client's images for exactly J steps of SGDM.

    Parameters
    ----------
    global_weights : Tensor of shape (N,) or (P,)
        All weights, or with `down` its packed entries; the other weights are never changed.
    local_steps : int, optional
        J in this round, 0 for one pass over the images; by default `local-steps`.
    batch_size : int, optional
        Images in a mini-batch of this round; by default `batch-size`.
    algorithm : Algorithm, optional
        FedAvg by default.
    received, memory : mapping of str to Tensor
        What the server broadcast, over the entries of `down`, and the client's memory.
    down : FlatMask, optional
        Which weights `global_weights` holds; all of them by default.
    up : FlatMask, optional
        Which weights are trained and returned, a subset of `down`; by default the same. Personal
        layers of the workspace are trained, as far as these masks have them, and travel neither
        way: `global_weights`, `received` and the update are without them.
    outbox : callable, optional
        Given a tensor of the update's shape, returns the tensor to write the update to, such as
        shared memory. By default that is the given tensor itself.
    """
    config, weights, layers = workspace.config, workspace.weights, workspace.layers
    device = weights.vector.device
    trained = up or down
    down, up = workspace.travelling(down), workspace.travelling(up) if up else None
    returned = up or down
    load_weights(workspace, global_weights, down)
    if returned is None or up is None:
        before = global_weights.to(device)  # all weights that travelled are trained
    else:
        before = up.gather(weights.vector)
    if layers is not None:
        layers.load(weights.vector, trained, memory.get(LAYERS))
    images = workspace.client_data(partition_id)
    algorithm = algorithm or Algorithm()
    rule = algorithm.local(before, _over(received, down, up, device), _to(memory, device))
    rule.begin(torch.bincount(images.labels, minlength=workspace.data.num_classes))
    run = partial(
        _train, workspace, images, over=returned,
        lr=lr, local_steps=local_steps, batch_size=batch_size,
    )  # fmt: skip
    key = (server_round, partition_id)
    own: dict[str, Tensor] = {}
    if rule.personal is not None:  # first, because the update may share the model's memory
        load_weights(workspace, rule.personal.weights, trained)
        run(rule.personal.rule, key=(*key, PERSONAL), trained=trained)
        own[PERSONAL] = _trained_weights(workspace, trained).clone()
        load_weights(workspace, before, trained)
    start_loss = _loss_over(workspace, images) if rule.wants_start_loss else 0.0
    first = layers.split(trained).own if layers is not None and config.personal_steps else None
    if first is not None and first.num_trained:  # nothing, where a client's own mask has none
        alone = LocalRule(loss=rule.loss)
        run(alone, key=(*key, LAYERS), local_steps=config.personal_steps, trained=first)
    loss = run(rule, key=key, trained=trained if first is None else returned)
    if layers is not None:
        own[LAYERS] = layers.split(trained).own.gather(weights.vector)
    after = _trained_weights(workspace, returned)
    update = torch.sub(after, before, out=outbox(after))
    steps = steps_of(config, len(images), local_steps)
    sent, kept = rule.finish(update, steps, lr)
    if (attack := attack_of(config, partition_id)) in ON_UPDATES:
        attack_(update, attack, lr * steps)
    return LocalResult(update, len(images), steps, loss, sent, {**kept, **own}, start_loss)


def _train(
    workspace: Workspace,
    images: ImageSet,
    rule: LocalRule,
    *,
    trained: FlatMask | None,
    over: FlatMask | None,
    **pace: Any,
) -> float:
    """Train the model from its current weights, without momentum at first; return the mean loss.

    Parameters
    ----------
    over : FlatMask or None
        The entries that the rule's vectors hold; those that are trained besides are personal.
    **pace
        The key, the rate, the steps and the batch size of `train_steps`.
    """
    masks = None if trained is None else workspace.weights.views(trained.mask)
    optimizer = make_optimizer(workspace.config, workspace.model, masks)
    with optimizer.skip_frozen_tensors():
        return train_steps(workspace, optimizer, images, rule=rule, trained=over, **pace)


def _trained_weights(workspace: Workspace, trained: FlatMask | None) -> Tensor:
    """Return the model's weights that are trained, (P,); if all are, in the model's own memory."""
    vector = workspace.weights.vector
    return vector if trained is None else trained.gather(vector)


def _loss_over(workspace: Workspace, images: ImageSet) -> float:
    """Return the mean loss over images without augmentation; of cached views, over the first."""
    if images.images.is_floating_point() and images.images.ndim == 4:  # (N, views, T, d)
        images = ImageSet(images.images[:, 0], images.labels)
    return evaluate(workspace, images)[0]


def load_weights(workspace: Workspace, global_weights: Tensor, down: FlatMask | None) -> None:
    """Load weights (N,), or with `down` those of its entries, (P,), into the model."""
    weights = workspace.weights
    if down is None:
        weights.load(global_weights)
    else:
        down.scatter_(weights.vector, global_weights.to(weights.vector.device))


def _to(vectors: Vectors, device: torch.device) -> Vectors:
    return {name: vector.to(device) for name, vector in vectors.items()}


def _over(
    received: Vectors, down: FlatMask | None, up: FlatMask | None, device: torch.device
) -> Vectors:
    """Return the vectors, which are over `down`, over the entries of `up`."""
    moved = _to(received, device)
    if up is None or not moved:
        return moved
    chosen = up if down is None else up.within(down)
    return {name: chosen.gather(vector) for name, vector in moved.items()}


def train_head(
    workspace: Workspace, global_head: Tensor, *, partition_id: int, server_round: int, lr: float
) -> LocalResult:
    """Train the head alone, as a linear probe on the frozen backbone."""
    head = workspace.head
    assert head is not None, "the head of this run is trained with the rest"
    head.load(global_head)
    images = workspace.client_data(partition_id)
    backbone = [p for p in workspace.model.parameters() if p.requires_grad]
    probe = [workspace.model.get_parameter(name) for name in head.names]
    _require_grad(backbone, False)
    _require_grad(probe, True)
    try:
        optimizer = make_optimizer(workspace.config, workspace.model)
        # The negative key gives the probe other batches than those of training.
        key = (-server_round, partition_id)
        loss = train_steps(workspace, optimizer, images, lr=lr, key=key)
    finally:
        _require_grad(probe, False)
        _require_grad(backbone, True)
    update = head.vector.sub_(global_head.to(head.vector.device))
    return LocalResult(update, len(images), steps_of(workspace.config, len(images)), loss)


def _require_grad(parameters: list[torch.nn.Parameter], value: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(value)
