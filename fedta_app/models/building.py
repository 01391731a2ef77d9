"""Models by name, with their initial weights.

A model is one of `fedta_app.models.architectures`, or a timm model with a linear head and without
batch statistics. The experiments use timm's ``vit_small_patch16_224.dino``: a ViT-S/16 (Touvron et
al., DeiT, ICML 2021) pre-trained with DINO (Caron et al., "Emerging Properties in Self-Supervised
Vision Transformers", ICCV 2021).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedta_app.errors import ModelError, first_line
from fedta_app.files import file_sha256
from fedta_app.models.architectures import ARCHITECTURES
from fedta_app.models.names import Design, misleading_names, own_design, timm_design, wrong_size
from fedta_app.models.weights_files import (
    fetch_from_hub,
    load_weights,
    read_weights,
    state_sha256,
    weights_path,
)
from fedta_app.seeding import checked_seed, derive_seed

__all__ = [
    "BuiltModel",
    "ModelError",
    "WeightsSource",
    "build_model",
    "features",
    "num_features",
    "own_image_size",
]


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a model came from.

    Attributes
    ----------
    kind : str
        "pretrained" (from the hub or from this repository), "file" or "random".
    location : str
        Path of the file, "hub id (file name)", or "" for random weights.
    sha256 : str
        Hash of the file, or of the state dict for random weights.
    pretrained : bool
        False for random weights.
    head_loaded : bool
        Whether the weights have a head that fits; otherwise it is initialised from the seed.
    """

    kind: str
    location: str
    sha256: str
    pretrained: bool
    head_loaded: bool


@dataclass(frozen=True)
class BuiltModel:
    """A float32 model on the CPU in training mode, with what is needed to use it.

    Attributes
    ----------
    model : nn.Module
        The model itself.
    head : str
        Name of the classifier module; its parameters are ``<head>.weight`` and ``<head>.bias``.
    image_size : int
        Pixels per side that the model takes.
    mean : tuple of float, or None
        Of each channel, where 255 is 1; None means that of the data set.
    std : tuple of float, or None
        Likewise.
    source : WeightsSource
        Where the weights came from.
    warnings : tuple of str
        Sentences to show to the user.
    """

    model: nn.Module
    head: str
    image_size: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    source: WeightsSource
    warnings: tuple[str, ...] = ()


def build_model(
    name: str,
    *,
    weights: str,
    image_size: int,
    num_classes: int,
    in_channels: int,
    seed: int,
) -> BuiltModel:
    """Return a model by its name, with its weights; torch's global generators are unchanged.

    Parameters
    ----------
    name : str
        One of `fedta_app.models.architectures`, such as ``vit_digits``, or a timm name.
    weights : str
        "pretrained", "random", or the path of a weights file.
    image_size : int
        Pixels per side; 0 for the model's own. Position embeddings are resampled to it.
    num_classes, in_channels : int
        Outputs of the head, and channels of the images. For a network that reads text the classes
        are also the characters that it knows, and in_channels is the length T of a window (B, T).
    seed : int
        Seed of random weights, and of the head where the weights have none that fits. The head
        does not depend on the other weights.

    Raises
    ------
    ModelError
        If the name is unknown, the model does not take the image size, the weights are missing or
        do not fit, or the model has batch normalisation or no linear head.
    ValueError
        If the seed is not an integer.

    Examples
    --------
    >>> from fedta_app.models import build_model, num_features
    >>> built = build_model(
    ...     "vit_digits", weights="pretrained", image_size=0, num_classes=10, in_channels=1, seed=0
    ... )
    >>> built.image_size, built.head, num_features(built.model)
    (8, 'head', 64)
    >>> built.model(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if num_classes < 2 or in_channels < 1 or image_size < 0:
        raise ModelError(
            f"image-size = {image_size}, num_classes = {num_classes} and in_channels = "
            f"{in_channels} are not allowed: the size is 0 for the model's own or above, and a "
            "classifier needs at least 2 classes and 1 channel"
        )
    seed = checked_seed(seed)
    design = _design(name, in_channels)
    if image_size and not design.image_size:
        raise ModelError(
            f"image-size = {image_size} is not allowed with model = {name!r}: it reads text; "
            "image-size is 0"
        )
    size = image_size or design.image_size
    model = _initialise(design, size, num_classes, in_channels, seed)
    _refuse_batch_statistics(name, model)
    head = _find_head(name, model)
    _seed_head(model, head, seed)
    _check_input(name, model, size, in_channels)
    source, names = _load(design, model, head, weights)
    warnings = misleading_names(name, names, head)
    return BuiltModel(model, head, size, design.mean, design.std, source, warnings)


def own_image_size(name: str) -> int:
    """Return the pixels per side of a model by its name, 0 for one that reads text.

    Raises
    ------
    ModelError
        If the name is unknown.
    """
    return _design(name, in_channels=3).image_size


def _design(name: str, in_channels: int) -> Design:
    return own_design(name) if name in ARCHITECTURES else timm_design(name, in_channels)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the head, (B, d), for images (B, channels, height, width)."""
    hidden = model.forward_features(images)  # type: ignore[operator]
    pooled: Tensor = model.forward_head(hidden, pre_logits=True)  # type: ignore[operator]
    return pooled


def num_features(model: nn.Module) -> int:
    """Return d, the number of inputs of the head."""
    classifier = model.get_classifier()  # type: ignore[operator]
    return int(classifier.in_features)


def _initialise(
    design: Design, image_size: int, num_classes: int, in_channels: int, seed: int
) -> nn.Module:
    """Build the model from the seed, and restore the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model", design.name))
        model = design.construct(image_size, num_classes, in_channels)
    return model.float().train()


def _seed_head(model: nn.Module, head: str, seed: int) -> None:
    """Initialise the head as timm does that of a vision transformer, from the seed."""
    classifier = model.get_submodule(head)
    assert isinstance(classifier, nn.Linear)
    generator = torch.Generator().manual_seed(derive_seed(seed, "model", "head"))
    nn.init.trunc_normal_(classifier.weight, std=0.02, generator=generator)
    if classifier.bias is not None:
        nn.init.zeros_(classifier.bias)


def _refuse_batch_statistics(name: str, model: nn.Module) -> None:
    for where, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None:
            raise ModelError(
                f"model = {name!r} is not allowed: its batch normalisation ({where}) keeps "
                "statistics that do not average over non-iid clients; choose a model with "
                "GroupNorm or LayerNorm, such as resnet_gn or a vit"
            )


def _find_head(name: str, model: nn.Module) -> str:
    """Return the name of the classifier, which must be one linear layer."""
    get_classifier = getattr(model, "get_classifier", lambda: None)
    classifier = get_classifier()
    for where, module in model.named_modules():
        if module is classifier and isinstance(module, nn.Linear):
            return str(where)
    raise ModelError(
        f"model = {name!r} is not allowed: its classifier is not one linear layer "
        f"({type(classifier).__name__}), so no head can be solved for, frozen or replaced"
    )


def _check_input(name: str, model: nn.Module, image_size: int, in_channels: int) -> None:
    """Raise ModelError unless the model takes such inputs and its head takes `features`."""
    if image_size:
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
        multiple = math.lcm(*patch) if isinstance(patch, tuple) else int(patch)
        if image_size < multiple or image_size % multiple:
            raise wrong_size(name, image_size, multiple)
        image = torch.zeros(1, in_channels, image_size, image_size)
    else:
        image = torch.zeros(1, in_channels, dtype=torch.int64)
    model.eval()
    try:
        with torch.no_grad():
            logits, seen = model(image), features(model, image)
            sound = seen.shape == (1, num_features(model)) and torch.allclose(
                model.get_classifier()(seen),  # type: ignore[operator]
                logits,
                atol=1e-5,
            )
    except Exception as error:  # each architecture refuses in its own way
        raise ModelError(
            f"image-size = {image_size} is not allowed with model = {name!r}: the model fails on "
            f"such an image ({first_line(error)})"
        ) from error
    finally:
        model.train()
    if not sound:
        raise ModelError(
            f"model = {name!r} is not allowed: its logits are not its linear classifier applied "
            "to its features, so no head can be solved for it"
        )


def _load(
    design: Design, model: nn.Module, head: str, weights: str
) -> tuple[WeightsSource, set[str]]:
    """Load the weights into the model; return their source and the names in their file."""
    if weights == "random":
        sha256 = state_sha256(model.state_dict())
        return WeightsSource("random", "", sha256, pretrained=False, head_loaded=False), set()
    path = weights_path(weights)
    if path:
        kind, location = "file", str(path)
    else:
        kind = "pretrained"
        location, path = _find_pretrained(design)
    state = read_weights(path)
    head_loaded = load_weights(model, state, head=head, source=f"weights = {weights!r}")
    source = WeightsSource(kind, location, file_sha256(path), True, head_loaded)
    return source, set(state)


def _find_pretrained(design: Design) -> tuple[str, Path]:
    """Return the location and the local path of the pre-trained weights."""
    if design.committed is not None:
        return str(design.committed), design.committed
    if design.hub is not None:
        hub_id, filename = design.hub
        return f"{hub_id} ({filename})", fetch_from_hub(hub_id, filename)
    raise ModelError(
        f"weights = 'pretrained' is not allowed with model = {design.name!r}: there are no "
        "pre-trained weights of it; weights is 'random' or the path of a weights file"
    )
