"""The workspace of a run, built once per process: data and model on the device, partitions."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedta_app.config import RunConfig, in_keys
from fedta_app.data.images import random_crop_flip, to_input
from fedta_app.data.loading import DataSplits, ImageSet, load_data
from fedta_app.device.cpu_kernels import use_kernels, write_out_attention
from fedta_app.device.cuda import resolve_precision, set_float32_policy, to_device
from fedta_app.errors import ConfigError, DataError, PartitionError
from fedta_app.models.building import BuiltModel, build_model
from fedta_app.partition.schemes import partition
from fedta_app.runs.provenance import device_name
from fedta_app.seeding import numpy_generator
from fedta_app.training.passes import Passes
from fedta_app.training.schedule import schedule_warning
from fedta_app.vectors.flat import FlatWeights

_DEFAULT_THREADS = torch.get_num_threads()


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, or raise ConfigError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {name!r} is not allowed: this machine has {torch.cuda.device_count()} CUDA "
            "devices that torch can use; device is auto, cpu, or a CUDA device that is there"
        )
    return torch.device(name)


@dataclass(frozen=True, eq=False)
class Workspace:
    """The data, the model and the weights that travel, on one device.

    `weights.vector` shares the memory of the model: loading it changes the model, and training the
    model changes it. Callers load the weights that they need first.

    Attributes
    ----------
    weights : FlatWeights
        The weights that are trained: all parameters, without a head that is made first.
    head : FlatWeights or None
        The parameters of a head that is made first and then frozen; None if the head is trained
        with the rest, as part of `weights`.
    kernels : str
        How linear layers multiply matrices; see `fedta_app.device.cpu_kernels`.
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
        """The precision of the forward pass, with "auto" resolved."""
        return resolve_precision(self.config.precision, self.device)

    @property
    def layout(self) -> str:
        """A text that is equal on server and client if their parameters and initial weights are."""
        return f"{self.weights.fingerprint}:{self.built.source.sha256}:{self.config.seed}"

    @cached_property
    def partitions(self) -> list[np.ndarray]:
        """The positions of each client's images in the training split."""
        config = self.config
        try:
            return partition(
                self.data.train.labels.cpu().numpy(),
                config.num_clients,
                scheme=config.partition,
                num_classes_per_client=config.num_classes_per_client,
                alpha=config.dirichlet_alpha,
                seed=config.seed,
            )
        except PartitionError as error:
            raise PartitionError(in_keys(str(error))) from error

    @cached_property
    def evaluation_sets(self) -> tuple[ImageSet, ImageSet]:
        """Validation and test images to measure on: a fixed draw of `eval-size`, if it is set."""
        return (
            _cut(self.data.val, self.config, "val"),
            _cut(self.data.test, self.config, "test"),
        )

    @cached_property
    def passes(self) -> Passes:
        """The forward and backward passes of the model, which all clients share."""
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
        """Return the positions of a client's images in the training split, int64, on the device."""
        return to_device(torch.from_numpy(self.partitions[partition_id]), self.device)

    def client_data(self, partition_id: int) -> ImageSet:
        """Return the training images of a client."""
        return self.data.train.subset(self.client_positions(partition_id))

    @cached_property
    def _for_head(self) -> Tensor:
        """Mask of the training images that the ridge head is made from, on the device."""
        number = len(self.data.train)
        order = numpy_generator(self.config.seed, "head-fraction").permutation(number)
        chosen = torch.zeros(number, dtype=torch.bool)
        chosen[order[: max(1, round(self.config.head_fraction * number))]] = True
        return to_device(chosen, self.device)

    def head_data(self, partition_id: int | None) -> ImageSet:
        """Return the images of a client, or with None of all, that the ridge head is made from."""
        if partition_id is None:
            positions = torch.arange(len(self.data.train), device=self.device)
        else:
            positions = self.client_positions(partition_id)
        return self.data.train.subset(positions[self._for_head[positions]])

    def inputs(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the model's inputs for uint8 images; with a generator, augment these first.

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
        When they do not fit; all are ValueErrors.
    """
    torch.set_num_threads(config.threads or _DEFAULT_THREADS)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    set_float32_policy(precision, device)
    try:
        data = load_data(
            config.dataset,
            str(Path(config.data_dir).expanduser()),
            val_size=config.val_size,
            seed=config.seed,
        )
    except DataError as error:
        raise DataError(in_keys(str(error))) from error
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
        _ = workspace.partitions  # raises if the data cannot be partitioned
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

    A run changes its weights, so `engine.client_memory.forget_run` must be called at the end.
    """
    return build_workspace(config)


def run_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of weights, data and device.

    The entries under "identity" must be the same when a run is resumed.
    """
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
        "warnings": [
            *filter(None, [*workspace.built.warnings, schedule_warning(workspace.config)])
        ],
    }
