"""Mini-batch SGD for the local steps of a client and for the baseline; evaluation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedta_app.algorithms.base import Correction, LocalRule
from fedta_app.config import RunConfig
from fedta_app.data.loading import ImageSet
from fedta_app.device.cuda import repeatable, seeded, to_device
from fedta_app.optim.sparse_sgdm import SparseSGDM
from fedta_app.progress import counting
from fedta_app.seeding import derive_seed, torch_generator
from fedta_app.training.ahead import FP16_SCALE, StepAhead
from fedta_app.training.passes import autocast
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.mask import FlatMask

# Puts the gradients of a batch, inputs and labels, into `.grad`, and returns the mean loss.
Backward = Callable[[Tensor, Tensor, torch.amp.GradScaler], Tensor]


def mini_batches(
    num_examples: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the positions of `steps` mini-batches; each pass over the data is shuffled anew.

    A batch holds `batch_size` positions, or all if there are fewer; the last batch of a pass holds
    what is left.

    Yields
    ------
    int64 Tensor of shape (B,)
    """
    size = min(batch_size, num_examples)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if not len(order):
            order = torch.randperm(num_examples, generator=generator)
        yield order[:size]
        order = order[size:]


def images_of(num_examples: int, batch_size: int, steps: int) -> int:
    """Return how many images are in the mini-batches of `mini_batches` together.

    Examples
    --------
    >>> images_of(450, 64, 8), images_of(450, 64, 9)  # a pass ends with 2 images, and one begins
    (450, 514)
    """
    size = min(batch_size, num_examples)
    passes, rest = divmod(steps, -(-num_examples // size))
    return passes * num_examples + rest * size


def steps_of(config: RunConfig, num_examples: int, local_steps: int | None = None) -> int:
    """Return J, or the steps of one pass over the data where J is 0.

    Parameters
    ----------
    local_steps : int, optional
        J, where a round has another than the configuration.
    """
    wanted = config.local_steps if local_steps is None else local_steps
    return wanted or -(-num_examples // min(config.batch_size, num_examples))


def make_optimizer(
    config: RunConfig, model: nn.Module, masks: Mapping[str, Tensor] | None = None
) -> SparseSGDM:
    """Return SGD with momentum over the parameters that require a gradient.

    Parameters
    ----------
    masks : mapping from parameter name to bool Tensor, optional
        Which entries are trained; by default all, as with `torch.optim.SGD`.
    """
    parameters = [entry for entry in model.named_parameters() if entry[1].requires_grad]
    return SparseSGDM(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        masks=masks,
    )


def train_steps(
    workspace: Workspace,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    *,
    lr: float,
    key: tuple[int | str, ...],
    local_steps: int | None = None,
    batch_size: int | None = None,
    rule: LocalRule | None = None,
    trained: FlatMask | None = None,
) -> float:
    """Train on the images, in place, and return the mean loss over the steps.

    Parameters
    ----------
    key : tuple of int or str
        Seeds batches, augmentation and dropout together with `seed`: round and partition id, and
        a word for a second training of the client in the round.
    local_steps : int, optional
        As in `steps_of`.
    batch_size : int, optional
        Images in a mini-batch, where a round has another number than the configuration.
    rule : LocalRule, optional
        The algorithm's loss, and its correction of the gradients.
    trained : FlatMask, optional
        The entries that the rule's vectors hold; by default all of `workspace.weights`.
    """
    config, model = workspace.config, workspace.model
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler = torch.amp.GradScaler(
        workspace.device.type, init_scale=FP16_SCALE, enabled=workspace.precision == "fp16"
    )
    steps, size = steps_of(config, len(images), local_steps), batch_size or config.batch_size
    total = torch.zeros((), device=workspace.device)
    correct = None
    if rule is not None and rule.correction is not None:
        correct = GradientCorrection(workspace, rule.correction, trained)
    loss = None if rule is None else rule.loss
    passes: Backward = partial(workspace.passes, loss=loss)
    if rule is not None and rule.ahead:
        others = _batches(workspace, images, steps, (*key, "ahead"), size)
        passes = StepAhead(workspace, rule.ahead, others, loss, trained)
    model.train()
    early: AbstractContextManager[None] = nullcontext()
    plain = not (scaler.is_enabled() or (rule and rule.ahead))  # one pass, of unscaled gradients
    if correct is not None and plain and workspace.device.type == "cpu":
        early, correct = correct.in_backward(), None
    dropout = seeded(workspace.device, derive_seed(config.seed, "dropout", *key))
    steady = repeatable(workspace.device, config.deterministic)
    with dropout, steady, early, counting("steps", steps) as done:
        # The CPU never waits for the GPU in this loop, except for the scaler of fp16.
        for inputs, labels in _batches(workspace, images, steps, key, size):
            total += _step(workspace, optimizer, scaler, inputs, labels, passes, correct)
            done.add()
    return float(total) / steps


def _batches(
    workspace: Workspace, images: ImageSet, steps: int, key: tuple[int | str, ...], size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the inputs and labels of mini-batches, drawn and augmented by the key."""
    seed = workspace.config.seed
    order = torch_generator(seed, "batches", *key)
    augmentation = torch_generator(seed, "augmentation", *key)
    for positions in mini_batches(len(images), size, steps, order):
        batch = images.subset(to_device(positions, images.images.device))
        yield workspace.inputs(batch.images, augmentation), batch.labels


def _step(
    workspace: Workspace,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    inputs: Tensor,
    labels: Tensor,
    passes: Backward,
    correct: "GradientCorrection | None",
) -> Tensor:
    optimizer.zero_grad()
    mean_loss = passes(inputs, labels, scaler)
    if isinstance(optimizer, SparseSGDM) and (scaler.is_enabled() or workspace.config.clip_norm):
        # Frozen entries neither overflow nor count in the norm; a correction leaves them at zero.
        optimizer.mask_gradients()
    if correct is not None or workspace.config.clip_norm:
        scaler.unscale_(optimizer)
    if correct is not None:
        correct()
    if workspace.config.clip_norm:
        # Not all parameters: those that another phase trained may still have gradients.
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        nn.utils.clip_grad_norm_(parameters, workspace.config.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return mean_loss


class GradientCorrection:
    """Adds pull * (w - centre) + shift to the gradients of the trained entries.

    For frozen entries that sum is zero: the centre is the weight itself, and the shift is zero.
    Layers that stay with the client are left out.
    """

    def __init__(
        self, workspace: Workspace, correction: Correction, trained: FlatMask | None
    ) -> None:
        weights = workspace.weights
        self._parameters = [workspace.model.get_parameter(name) for name in weights.names]
        personal = workspace.layers.names if workspace.layers else frozenset[str]()
        self._corrected = [i for i, name in enumerate(weights.names) if name not in personal]
        self._pull = correction.pull
        self._centre = self._shift = None
        if correction.pull and correction.centre is not None:
            whole = _whole(correction.centre, trained, weights.vector.clone)
            self._centre = list(weights.views(whole).values())
        if correction.shift is not None:
            whole = _whole(correction.shift, trained, lambda: torch.zeros_like(weights.vector))
            self._shift = list(weights.views(whole).values())

    @torch.no_grad()
    def __call__(self) -> None:
        """Correct all gradients that are not None, in place."""
        there = [i for i in self._corrected if self._parameters[i].grad is not None]
        gradients: list[Tensor] = [self._parameters[i].grad for i in there]  # type: ignore[misc]
        if self._centre is not None:
            weights: list[Tensor] = [self._parameters[i] for i in there]
            centres: list[Tensor] = [self._centre[i] for i in there]
            moved = list(torch._foreach_sub(weights, centres))
            torch._foreach_add_(gradients, moved, alpha=self._pull)
        if self._shift is not None:
            torch._foreach_add_(gradients, [self._shift[i] for i in there])

    @contextmanager
    def in_backward(self) -> Iterator[None]:
        """Within the block, correct each gradient as soon as a backward pass has made it.

        It gives the same bits. On a CPU the gradient is in its cache then, where all of them
        together have to be fetched from memory and written back once more.
        """
        handles = [
            self._parameters[i].register_post_accumulate_grad_hook(partial(self._correct, i))
            for i in self._corrected
            if self._parameters[i].requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _correct(self, i: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if self._centre is not None:
            parameter.grad.add_(parameter - self._centre[i], alpha=self._pull)
        if self._shift is not None:
            parameter.grad.add_(self._shift[i])


def _whole(packed: Tensor, trained: FlatMask | None, base: Callable[[], Tensor]) -> Tensor:
    """Return a packed vector over all weights, with the values of `base` at frozen entries."""
    if trained is None:
        return packed
    whole = base()
    trained.scatter_(whole, packed.to(whole.device))
    return whole


def evaluate(workspace: Workspace, images: ImageSet) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy of the model's current weights."""
    loss, predicted = predict(workspace, images)
    return loss, int((predicted == images.labels).sum()) / len(images)


def predict(workspace: Workspace, images: ImageSet) -> tuple[float, Tensor]:
    """Return the mean cross-entropy of the model's current weights, and their predictions.

    Returns
    -------
    loss : float
    predicted : int64 Tensor of shape (N,)
        The class with the largest logit for each image.
    """
    config, model = workspace.config, workspace.model
    model.eval()
    forward = model.get_submodule(workspace.built.head) if images.are_features else model
    loss = torch.zeros((), dtype=torch.float64, device=workspace.device)
    predicted = []
    precision = autocast(workspace.precision, workspace.device)
    with torch.inference_mode(), precision, counting("images", len(images)) as done:
        for start in range(0, len(images), config.eval_batch_size):
            stop = start + config.eval_batch_size
            labels = images.labels[start:stop]
            logits = forward(workspace.inputs(images.images[start:stop])).float()
            loss += cross_entropy(logits, labels, reduction="sum").double()
            predicted.append(logits.argmax(dim=1))
            done.add(len(labels))
    return float(loss) / len(images), torch.cat(predicted)
