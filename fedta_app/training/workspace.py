"""The workspace of a run, built once per process: data and model on the device, partitions."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from fedta_app.config import RunConfig
from fedta_app.data.images import random_crop_flip, to_input
from fedta_app.data.loading import DataSplits, ImageSet
from fedta_app.device.cpu_kernels import use_kernels, write_out_attention
from fedta_app.device.cuda import (
    resolve_device,
    resolve_precision,
    set_float32_policy,
    to_device,
)
from fedta_app.errors import ConfigError
from fedta_app.models.blocks import split_blocks
from fedta_app.models.building import BuiltModel, build_model
from fedta_app.models.personal_layers import PersonalLayers, personal_layers
from fedta_app.models.weights_files import weights_path
from fedta_app.partition.sharing import counted_once
from fedta_app.seeding import numpy_generator, torch_generator
from fedta_app.training.datasets import divide, load_run_data
from fedta_app.training.frozen import Stem, Views, make_stem, one_view
from fedta_app.training.passes import Passes, resolve_mode
from fedta_app.vectors.flat import FlatWeights, weights_and_head
from fedta_app.vectors.mask import FlatMask

_DEFAULT_THREADS = torch.get_num_threads()


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
    stem : Stem or None
        The frozen blocks, where only the last `trained-blocks` are trained.
    model : nn.Module
        What is trained, on the device: the whole model, or the blocks behind the stem.
    layers : PersonalLayers or None
        The tensors of `weights` that stay with each client, where there are some.
    node : int or None
        The partition id of the node that this is, where each has images of its own.
    """

    config: RunConfig
    device: torch.device
    data: DataSplits
    built: BuiltModel
    weights: FlatWeights
    head: FlatWeights | None
    kernels: str
    stem: Stem | None
    model: torch.nn.Module
    layers: PersonalLayers | None
    node: int | None = None
    _start_features: dict[str, ImageSet] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The precision of the forward pass, with "auto" resolved."""
        return resolve_precision(self.config.precision, self.device)

    def travelling(self, trained: FlatMask | None) -> FlatMask | None:
        """Return which of the trained weights travel; None, there and here, for all weights."""
        return trained if self.layers is None else self.layers.split(trained).travelling

    @property
    def layout(self) -> str:
        """A text that is equal on server and client if parameters, start and class names are."""
        start = f"{self.built.source.sha256}:{self.config.seed}:{self.data.names_sha256}"
        return f"{self.weights.fingerprint}:{start}"

    @cached_property
    def partitions(self) -> list[np.ndarray]:
        """The positions of each client's images in the training split."""
        train = self.data.train
        natural = None if train.clients is None else train.clients.cpu().numpy()
        return divide(self.config, train.labels.cpu().numpy(), natural, self.node)

    @cached_property
    def evaluation_sets(self) -> tuple[ImageSet, ImageSet]:
        """Validation and test images to measure on: a fixed draw of `eval-size`, if it is set."""
        return self.measured("val", self.plain.val), self.measured("test", self.plain.test)

    def measured(self, split: str, images: ImageSet) -> ImageSet:
        """Return those images of a split that are measured on."""
        number, most = len(images), self.config.eval_size
        if not most or most >= number:
            return images
        order = numpy_generator(self.config.seed, "eval-size", split).permutation(number)
        kept = torch.from_numpy(np.sort(order[:most]))
        return images.subset(kept.to(images.images.device))

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
            mode=resolve_mode(config.compile, self.device),
            batch_sizes={min(config.batch_size, number) for number in held if number},
        )

    def client_positions(self, partition_id: int) -> Tensor:
        """Return the positions of a client's images in the training split, int64, on the device."""
        return to_device(torch.from_numpy(self.partitions[partition_id]), self.device)

    def counted_positions(self, partition_id: int, asked: Iterable[int] | None = None) -> Tensor:
        """Return those that count for a client where an image counts once of the clients asked."""
        if not self.config.shared_fraction:
            return self.client_positions(partition_id)
        clients = range(len(self.partitions)) if asked is None else asked
        counted = counted_once(self.partitions, partition_id, clients)
        return to_device(torch.from_numpy(counted), self.device)

    @cached_property
    def plain(self) -> DataSplits:
        """The data without augmentation: images, or the tokens that the frozen blocks make of them.

        Head, calibration and measurements start from here.
        """
        data, stem = self.data, self.stem
        if stem is None:
            return data
        tokens = partial(stem.cached, pixels=self.pixels)
        train, val = tokens("train", data.train), tokens("val", data.val)
        return replace(data, train=train, val=val, test=tokens("test", data.test))

    @cached_property
    def train_images(self) -> ImageSet:
        """The training images as `inputs` takes them: pixels, or tokens where these are cached."""
        config, stem, data = self.config, self.stem, self.data
        if stem is None or (config.augment and not config.cached_views):
            return data.train
        if not config.augment:
            return self.plain.train

        def view(images: Tensor, number: int, chunk: int) -> Tensor:
            return self._augmented(images, torch_generator(config.seed, "view", number, chunk))

        about = {"seed": config.seed, "crop-padding": data.crop_padding, "flip": data.flip}
        views = Views(config.cached_views, about, view)
        return stem.cached("train", data.train, self.pixels, views)

    def start_images(self, split: str) -> ImageSet:
        """Return the images of a split as features (N, d) under the weights of the start.

        These are the weights of the first call. Without a stem nothing says that other runs have
        the same start, and the images are those of `plain`.
        """
        images: ImageSet = getattr(self.plain, split)
        if self.stem is None:
            return images
        if split not in self._start_features:
            head = self.built.head
            self._start_features[split] = self.stem.features(split, images, self.model, head)
        return self._start_features[split]

    def fill_cache(self) -> None:
        """Compute what the clients will read from the cache, before they ask for it."""
        if self.stem is not None and self.config.cache_dir:
            _ = self.plain, self.train_images
            if self.config.head == "ridge" and len(self.data.train):
                self.start_images("train")

    def client_data(self, partition_id: int) -> ImageSet:
        """Return the training images of a client, as `inputs` takes them."""
        positions = self.client_positions(partition_id)
        return self.train_images.subset(positions)

    def inputs(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the model's inputs for images; with a generator, augment these first.

        Parameters
        ----------
        images : Tensor
            uint8 pixels (B, C, H, W), or uint8 characters (B, T), or cached tokens (B, T, d)
            or, of V views, (B, V, T, d), or features (B, d), which stay as they are.

        Returns
        -------
        Tensor
            float32 pixels (B, C', image-size, image-size), or tokens (B, T, d) where there is a
            stem, or int64 characters (B, T).
        """
        if images.is_floating_point():
            return to_device(one_view(images, generator), self.device)
        if self.data.alphabet:
            return images.long()
        if generator is not None and self.config.augment:
            images = self._augmented(images, generator)
        pixels = self.pixels(images)
        return pixels if self.stem is None else self.stem.tokens(pixels)

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return random_crop_flip(
            images, padding=self.data.crop_padding, flip=self.data.flip, generator=generator
        )

    def pixels(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) as float32 pixels (B, C', image-size, image-size)."""
        mean, std = self.normalisation
        return to_input(images, size=self.built.image_size, mean=mean, std=std)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of the model or else of the data set."""
        return self.built.mean or self.data.mean, self.built.std or self.data.std


def build_workspace(
    config: RunConfig, data: DataSplits | None = None, node: int | None = None
) -> Workspace:
    """Load the data, unless given, build the model and check that they fit the configuration.

    Parameters
    ----------
    node : int, optional
        The partition id of the node that this is, where each has images of its own.

    Raises
    ------
    ConfigError, DataError, ModelError, PartitionError
        When they do not fit; all are ValueErrors.
    """
    torch.set_num_threads(config.threads or _DEFAULT_THREADS)
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    set_float32_policy(precision, device)
    weights_path(config.weights)  # raises before images are read, which can take an hour
    data = data or load_run_data(config, node)
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
    stem, model = None, built.model
    if config.trained_blocks:
        size, channels = built.image_size, data.train.images.shape[1]
        image = torch.zeros(1, len(built.mean or [0] * channels), size, size, device=device)
        frozen, model = split_blocks(config.model, model, config.trained_blocks, image)
        about = {"data": data.digest, "image-size": size, "kernels": kernels}
        about["normalisation"] = [built.mean or data.mean, built.std or data.std]
        stem = make_stem(frozen, config, device, about)
    weights, head = weights_and_head(model, built.head, frozen=config.head != "random")
    data = data.to(device)
    patterns = "none" if config.engine == "centralized" else config.personal_layers
    layers = personal_layers(patterns, model, weights, head=built.head)
    workspace = Workspace(
        config, device, data, built, weights, head, kernels, stem, model, layers, node
    )
    if config.engine != "centralized":
        _ = workspace.partitions  # raises if the data cannot be partitioned
    return workspace


@lru_cache(maxsize=1)
def shared_workspace(config: RunConfig, node: int | None, /) -> Workspace:
    """Return this process's workspace, which `build_workspace` makes at the first call.

    A run changes its weights, so `engine.client_memory.forget_run` must be called at the end.
    """
    gc.collect()  # cycles hold the images and weights of the run before
    return build_workspace(config, node=node)
