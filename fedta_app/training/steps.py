"""Mini-batch SGD on one device: the J local steps of a client, and the epochs of the baseline."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedta_app.config import RunConfig
from fedta_app.data.loading import ImageSet
from fedta_app.device.cuda import repeatable, to_device
from fedta_app.optim.sparse_sgdm import SparseSGDM
from fedta_app.seeding import derive_seed, torch_generator
from fedta_app.training.passes import autocast
from fedta_app.training.workspace import Workspace

# A client takes few steps: a scale that overflows at first, as torch's 65536 can, wastes them.
_FP16_SCALE = 1024.0


def mini_batches(
    num_examples: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the positions of `steps` mini-batches; each pass over the data is shuffled anew.

    A batch holds `batch_size` positions, the last of a pass what is left; a client with fewer
    examples than that gives all it has, every step.

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


def steps_of(config: RunConfig, num_examples: int) -> int:
    """Return J, or the steps of one pass over the data where `local-steps` is 0."""
    return config.local_steps or -(-num_examples // min(config.batch_size, num_examples))


def make_optimizer(
    config: RunConfig, model: nn.Module, masks: Mapping[str, Tensor] | None = None
) -> SparseSGDM:
    """Return SGDM over the parameters that are trained; its learning rate is set every round.

    Parameters
    ----------
    masks : mapping from parameter name to bool Tensor, optional
        Which entries are trained; without it all are, as by `torch.optim.SGD`.
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
    optimizer: SparseSGDM,
    images: ImageSet,
    *,
    lr: float,
    key: tuple[int, ...],
) -> float:
    """Train on the images, in place, and return the mean loss over the steps.

    Parameters
    ----------
    key : tuple of int
        What batches, augmentation and dropout depend on, besides the seed: the round, the client.
    """
    config, model = workspace.config, workspace.model
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler = torch.amp.GradScaler(
        workspace.device.type, init_scale=_FP16_SCALE, enabled=workspace.precision == "fp16"
    )
    order = torch_generator(config.seed, "batches", *key)
    augmentation = torch_generator(config.seed, "augmentation", *key)
    steps = steps_of(config, len(images))
    total = torch.zeros((), device=workspace.device)
    model.train()
    dropout = _seeded(workspace.device, derive_seed(config.seed, "dropout", *key))
    with dropout, repeatable(workspace.device, config.deterministic):
        # On a GPU nothing in here waits for it, but for fp16: its scaler asks what to skip.
        for positions in mini_batches(len(images), config.batch_size, steps, order):
            batch = images.subset(to_device(positions, workspace.device))
            inputs = workspace.inputs(batch.images, augmentation)
            total += _step(workspace, optimizer, scaler, inputs, batch.labels)
    return float(total) / steps


def _step(
    workspace: Workspace,
    optimizer: SparseSGDM,
    scaler: torch.amp.GradScaler,
    inputs: Tensor,
    labels: Tensor,
) -> Tensor:
    optimizer.zero_grad()
    loss = workspace.passes(inputs, labels, scaler)
    if workspace.config.clip_norm:
        scaler.unscale_(optimizer)
        optimizer.mask_gradients()  # the norm of what is trained, not of what is frozen
        # Not the model's parameters: what another phase trained may still hold its gradients.
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(trained, workspace.config.clip_norm)
    scaler.step(optimizer)
    scaler.update()
    return loss


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's own generators, which dropout uses, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def evaluate(workspace: Workspace, images: ImageSet) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy of the model as it is, in large batches."""
    config, model = workspace.config, workspace.model
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=workspace.device)
    correct = torch.zeros((), dtype=torch.int64, device=workspace.device)
    with torch.inference_mode(), autocast(workspace.precision, workspace.device):
        for start in range(0, len(images), config.eval_batch_size):
            stop = start + config.eval_batch_size
            labels = images.labels[start:stop]
            logits = model(workspace.inputs(images.images[start:stop])).float()
            loss += cross_entropy(logits, labels, reduction="sum").double()
            correct += (logits.argmax(dim=1) == labels).sum()
    return float(loss) / len(images), int(correct) / len(images)
