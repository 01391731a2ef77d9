"""Models by name, with the weights they start from.

The model of the experiments is ViT-S/16 (Touvron et al., DeiT, ICML 2021) pre-trained with DINO
(Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021), timm's
``vit_small_patch16_224.dino``; any other timm model with a linear head and no batch statistics
works, as do the networks of `fedta_app.models.architectures`.
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
from fedta_app.models.weights_files import fetch_from_hub, load_weights, read_weights, state_sha256
from fedta_app.seeding import derive_seed

__all__ = ["BuiltModel", "ModelError", "WeightsSource", "build_model", "features", "num_features"]


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a model came from.

    Attributes
    ----------
    kind : str
        "pretrained" (a hub, or this repository), "file" or "random".
    location : str
        Path of the file, "hub id (file name)", or "" for random weights.
    sha256 : str
        Of the file; of the state dict for random weights.
    pretrained : bool
        False for random weights.
    head_loaded : bool
        Whether the weights brought a head that fits; if not, it is initialised from the seed.
    """

    kind: str
    location: str
    sha256: str
    pretrained: bool
    head_loaded: bool


@dataclass(frozen=True)
class BuiltModel:
    """A model in train mode, float32, on the CPU, and what must be known to use it.

    Attributes
    ----------
    model : nn.Module
    head : str
        Name of the classifier module; its parameters are ``<head>.weight`` and ``<head>.bias``.
    image_size : int
        Pixels per side that the model takes.
    mean : tuple of float, or None
        Per channel in [0, 1] units; None means "use that of the data set".
    std : tuple of float, or None
        Likewise.
    source : WeightsSource
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
    cache_dir: str | None = None,
) -> BuiltModel:
    """Build a model by name and give it its first weights; torch's global generators stay as is.

    Parameters
    ----------
    name : str
        ``vit_digits``, ``vit_cifar``, ``cnn``, ``resnet_gn``, or a timm name.
    weights : str
        "pretrained", "random", or the path of a weights file.
    image_size : int
        Pixels per side; 0 for the model's own. Position embeddings are resampled to it.
    num_classes, in_channels : int
    seed : int
        Of the random weights, and of the head where the weights bring none that fits: the head
        is the same whatever the other weights are.
    cache_dir : str, optional
        For downloads; the hub's own cache by default.

    Raises
    ------
    ModelError
        For an unknown name, an image size that the model cannot take, weights that are not there
        or do not fit, batch normalisation, or a classifier that is not one linear layer.
    """
    if num_classes < 2 or in_channels < 1 or image_size < 0:
        raise ModelError(
            f"image-size = {image_size}, num_classes = {num_classes} and in_channels = "
            f"{in_channels} are not allowed: the size is 0 for the model's own or above, and a "
            "classifier needs at least 2 classes and 1 channel"
        )
    design = own_design(name) if name in ARCHITECTURES else timm_design(name, in_channels)
    size = image_size or design.image_size
    model = _initialise(design, size, num_classes, in_channels, seed)
    _refuse_batch_statistics(name, model)
    head = _find_head(name, model)
    _seed_head(model, head, seed)
    _check_image_size(name, model, size, in_channels)
    source, names = _load(design, model, head, weights, cache_dir)
    warnings = misleading_names(name, names, head)
    return BuiltModel(model, head, size, design.mean, design.std, source, warnings)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the input of the head, [B, d], for images [B, channels, height, width]."""
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
    """Build the model from the seed alone; the global generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "model", design.name))
        model = design.construct(image_size, num_classes, in_channels)
    return model.float().train()


def _seed_head(model: nn.Module, head: str, seed: int) -> None:
    """Initialise the head as timm does a vision transformer's, from a generator of its own."""
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


def _check_image_size(name: str, model: nn.Module, image_size: int, in_channels: int) -> None:
    """Run one blank image: its size must be accepted, and the head must see `features`."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    multiple = math.lcm(*patch) if isinstance(patch, tuple) else int(patch)
    if image_size < multiple or image_size % multiple:
        raise wrong_size(name, image_size, multiple)
    image = torch.zeros(1, in_channels, image_size, image_size)
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
    design: Design, model: nn.Module, head: str, weights: str, cache_dir: str | None
) -> tuple[WeightsSource, set[str]]:
    """Load the weights into the model; return their source and the names they came with."""
    if weights == "random":
        sha256 = state_sha256(model.state_dict())
        return WeightsSource("random", "", sha256, pretrained=False, head_loaded=False), set()
    if weights == "pretrained":
        kind = "pretrained"
        location, path = _find_pretrained(design, cache_dir)
    else:
        kind, path = "file", Path(weights).expanduser().absolute()
        location = str(path)
    state = read_weights(path)
    head_loaded = load_weights(model, state, head=head, source=f"weights = {weights!r}")
    source = WeightsSource(kind, location, file_sha256(path), True, head_loaded)
    return source, set(state)


def _find_pretrained(design: Design, cache_dir: str | None) -> tuple[str, Path]:
    """Return the name and the local path of the design's own weights file."""
    if design.committed is not None:
        return str(design.committed), design.committed
    if design.hub is not None:
        hub_id, filename = design.hub
        return f"{hub_id} ({filename})", fetch_from_hub(hub_id, filename, cache_dir)
    raise ModelError(
        f"weights = 'pretrained' is not allowed with model = {design.name!r}: there are no "
        "pre-trained weights of it; weights is 'random' or the path of a weights file"
    )
