"""What a round of training consists of, each part timed alone."""

from typing import Any

import torch

from benchmarks.harness.operations import median_seconds
from fedta_app.aggregation.accumulators import MeanAccumulator
from fedta_app.aggregation.means import apply_update
from fedta_app.device.cuda import repeatable, to_device
from fedta_app.seeding import torch_generator
from fedta_app.training.steps import make_optimizer
from fedta_app.training.workspace import Workspace
from fedta_app.vectors.arithmetic import stepped
from fedta_app.vectors.mask import FlatMask

_REPEATS = 10


def round_parts(workspace: Workspace, round_seconds: float) -> list[dict[str, Any]]:
    """Return, for each part of a round, its seconds per round and its share.

    "rest" is what the round took beyond them: messages, Python, waiting. It is below zero where
    the CPU prepared one part while the GPU still did another.
    """
    config, device, weights = workspace.config, workspace.device, workspace.weights
    clients = max(1, round(config.fraction_train * config.num_clients))
    steps = clients * config.local_steps
    images = workspace.client_data(0)
    start = weights.vector.clone()
    mask = _random_mask(workspace) if config.mask_rule != "none" else None
    masks = None if mask is None else weights.views(mask.mask)
    optimizer = make_optimizer(config, workspace.model, masks)
    scaler = torch.amp.GradScaler(device.type, enabled=workspace.precision == "fp16")
    positions = torch.arange(min(config.batch_size, len(images)))
    generator = torch_generator("bench_gpu")

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = images.subset(to_device(positions, device))
        return workspace.inputs(chosen.images, generator), chosen.labels

    inputs, labels = batch()

    def passes() -> None:
        optimizer.zero_grad()
        workspace.passes(inputs, labels, scaler)

    def step() -> None:
        scaler.step(optimizer)
        scaler.update()

    def load() -> None:
        if mask is None:
            weights.load(start)
        else:
            mask.scatter_(weights.vector, packed)
        workspace.client_data(0)
        make_optimizer(config, workspace.model, masks)

    packed = start if mask is None else mask.gather(start)
    mean = MeanAccumulator()
    mean.add(packed, 1)

    def combine() -> None:
        update = weights.vector.sub(start) if mask is None else mask.gather(weights.vector)
        mean.add(update, 1)

    def apply() -> None:
        if mask is None:
            apply_update({"vector": start}, {"vector": start}, scale=0.0)
        else:
            mask.scatter_(start, stepped(mask.gather(start), packed, 0.0))

    workspace.model.train()
    with repeatable(device, config.deterministic):
        parts = [
            ("data: gather, augment, resize", batch, steps),
            ("forward and backward", passes, steps),
            ("optimizer", step, steps),
        ]
        timed = [(name, _time(run, device) * times) for name, run, times in parts]
    others = [
        ("load weights, set up the client", load, clients),
        ("update, aggregation", combine, clients),
        ("apply to the global weights", apply, 1),
    ]
    timed += [(name, _time(run, device) * times) for name, run, times in others]
    timed.append(("rest", round_seconds - sum(seconds for _, seconds in timed)))
    return [
        {"name": name, "seconds": seconds, "share": seconds / round_seconds}
        for name, seconds in timed
    ]


def _time(run: Any, device: torch.device) -> float:
    return median_seconds(run, device, repeats=_REPEATS)


def _random_mask(workspace: Workspace) -> FlatMask:
    number, density = workspace.weights.vector.numel(), 1 - workspace.config.sparsity
    drawn = torch.rand(number, generator=torch_generator("bench_gpu", "mask")) < density
    return FlatMask(drawn.to(workspace.device))
