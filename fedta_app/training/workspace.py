"""What a process needs to work on a run, built once: data and model on the device, partitions."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.data.images import random_crop_flip, to_input
from fedta_app.data.loading import DataSplits, ImageSet, load_data
from fedta_app.device.cpu_kernels import use_kernels, write_out_attention
from fedta_app.device.cuda import resolve_precision, set_float32_policy, to_device
from fedta_app.errors import ConfigError
from fedta_app.models.building import BuiltModel, build_model
from fedta_app.partition.schemes import partition
from fedta_app.runs.provenance import device_name
from fedta_app.seeding import numpy_generator
from fedta_app.training.passes import Passes
from fedta_app.vectors.flat import FlatWeights

_DEFAULT_THREADS = torch.get_num_threads()


def resolve_device(name: str) -> torch.device:
    """Return the device that `device` names, or refuse one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r} is not allowed: this machine has {torch.cuda.device_count()} CUDA "
            "devices that torch can use; device is auto, cpu, or a CUDA device that is there"
        )
    return device


@dataclass(frozen=True, eq=False)
class Workspace:
    """The data, the model and the weights that travel, on one device.

    `weights.vector` is the model: loading it changes the model, training changes it. Whoever uses
    a workspace loads the weights it wants first.

    Attributes
    ----------
    weights : FlatWeights
        What is trained, or masked: all parameters; without the head where it is made first.
    head : FlatWeights or None
        The head's parameters where it is made first and then frozen; None where it is trained
        with the rest, and part of `weights`.
    kernels : str
        What multiplies the matrices of linear layers: see `fedta_app.device.cpu_kernels`.
    """

    config: RunConfig
    device: torch.device
    data: DataSplits
    built: BuiltModel
    weights: FlatWeights
    head: FlatWeights | None
    kernels: str

    @property
    def model(self) -> torch.nn.Module:
        """The model, on the device."""
        return self.built.model

    @property
    def precision(self) -> str:
        """The precision of the forward pass, "auto" resolved."""
        return resolve_precision(self.config.precision, self.device)

    @property
    def layout(self) -> str:
        """What server and client must agree on: parameters, and the weights they start from."""
        return f"{self.weights.fingerprint}:{self.built.source.sha256}:{self.config.seed}"

    @cached_property
    def partitions(self) -> list[np.ndarray]:
        """Per client, the positions of its images in the training split."""
        config = self.config
        return partition(
            self.data.train.labels.cpu().numpy(),
            config.num_clients,
            scheme=config.partition,
            num_classes_per_client=config.num_classes_per_client,
            alpha=config.dirichlet_alpha,
            seed=config.seed,
        )

    @cached_property
    def evaluation_sets(self) -> tuple[ImageSet, ImageSet]:
        """Validation and test images to measure on, cut to `eval-size` by a fixed draw."""
        return (
            _cut(self.data.val, self.config, "val"),
            _cut(self.data.test, self.config, "test"),
        )

    @cached_property
    def passes(self) -> Passes:
        """Forward and backward passes of the model, the same for all clients."""
        config = self.config
        central = config.engine == "centralized"
        held = [len(self.data.train)] if central else map(len, self.partitions)
        return Passes(
            self.model,
            self.device,
            precision=self.precision,
            mode=config.compile,
            batch_sizes={min(config.batch_size, number) for number in held},
        )

    def client_positions(self, partition_id: int) -> Tensor:
        """Return where a client's images are in the training split, int64, on the device."""
        return to_device(torch.from_numpy(self.partitions[partition_id]), self.device)

    def client_data(self, partition_id: int) -> ImageSet:
        """Return the training images of a client."""
        return self.data.train.subset(self.client_positions(partition_id))

    @cached_property
    def _for_head(self) -> Tensor:
        """Which training images the ridge head is made from, bool, on the device."""
        number = len(self.data.train)
        order = numpy_generator(self.config.seed, "head-fraction").permutation(number)
        chosen = torch.zeros(number, dtype=torch.bool)
        chosen[order[: max(1, round(self.config.head_fraction * number))]] = True
        return to_device(chosen, self.device)

    def head_data(self, partition_id: int | None) -> ImageSet:
        """Return the images of a client, or of all with None, that the ridge head is made from."""
        if partition_id is None:
            positions = torch.arange(len(self.data.train), device=self.device)
        else:
            positions = self.client_positions(partition_id)
        return self.data.train.subset(positions[self._for_head[positions]])

    def inputs(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Turn uint8 images into what the model takes; with a generator, augment them first.

        Parameters
        ----------
        images : uint8 Tensor of shape (B, C, H, W)

        Returns
        -------
        float32 Tensor of shape (B, C', image-size, image-size)
        """
        if generator is not None and self.config.augment:
            images = random_crop_flip(
                images, padding=self.data.crop_padding, flip=self.data.flip, generator=generator
            )
        mean = self.built.mean or self.data.mean
        std = self.built.std or self.data.std
        return to_input(images, size=self.built.image_size, mean=mean, std=std)


def _cut(images: ImageSet, config: RunConfig, split: str) -> ImageSet:
    if not config.eval_size or config.eval_size >= len(images):
        return images
    order = numpy_generator(config.seed, "eval-size", split).permutation(len(images))
    kept = torch.from_numpy(np.sort(order[: config.eval_size]))
    return images.subset(kept.to(images.images.device))


def build_workspace(config: RunConfig) -> Workspace:
    """Load the data, build the model and check that they fit the configuration.

    Raises
    ------
    ConfigError, DataError, ModelError, PartitionError
        All ValueErrors of one sentence.
    """
    torch.set_num_threads(config.threads or _DEFAULT_THREADS)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    set_float32_policy(precision, device)
    data = load_data(
        config.dataset,
        str(Path(config.data_dir).expanduser()),
        val_size=config.val_size,
        seed=config.seed,
    )
    built = build_model(
        config.model,
        weights=config.weights,
        image_size=config.image_size,
        num_classes=data.num_classes,
        in_channels=data.train.images.shape[1],
        seed=config.seed,
    )
    built.model.to(device)
    try:
        kernels = use_kernels(built.model, config.kernels, device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if device.type == "cpu" and precision == "bf16":
        write_out_attention(built.model)
    weights, head = _split_weights(config, built)
    workspace = Workspace(config, device, data.to(device), built, weights, head, kernels)
    if config.engine != "centralized":
        _ = workspace.partitions  # refuses what cannot be partitioned
    return workspace


def _split_weights(config: RunConfig, built: BuiltModel) -> tuple[FlatWeights, FlatWeights | None]:
    names = [name for name, _ in built.model.named_parameters()]
    if config.head == "random":
        return FlatWeights(built.model, names), None
    head_names = [name for name in names if name.startswith(f"{built.head}.")]
    head = FlatWeights(built.model, head_names)
    built.model.get_submodule(built.head).requires_grad_(False)
    return FlatWeights(built.model, [name for name in names if name not in head_names]), head


@lru_cache(maxsize=1)
def shared_workspace(config: RunConfig) -> Workspace:
    """Return this process's workspace for the configuration, built at the first call.

    A run trains it, so whoever runs calls `engine.client_memory.forget_run` at the end.
    """
    return build_workspace(config)


def run_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of weights, data and device; "identity" cannot change."""
    source = workspace.built.source
    return {
        "identity": {
            "data-sha256": workspace.data.digest,
            "weights-file-sha256": source.sha256,
            "parameters-sha256": workspace.weights.fingerprint,
        },
        "weights": {"kind": source.kind, "from": source.location, "pretrained": source.pretrained},
        "device": device_name(workspace.device),
        "kernels": workspace.kernels,
        "precision": workspace.precision,
        "warnings": list(workspace.built.warnings),
    }
