"""How the model of a name is built, its image size, and where its weights are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained
from torch import nn

from fedta_app.errors import ModelError, first_line
from fedta_app.models.architectures import ARCHITECTURES
from fedta_app.models.committed import committed_weights
from fedta_app.spelling import did_you_mean


@dataclass(frozen=True)
class Design:
    """How the model of a name is built, and where its pre-trained weights are.

    ``construct(image_size, num_classes, in_channels)`` draws the weights from torch's global
    generator. At most one of ``committed`` (a file) and ``hub`` (id, file name) is set.
    """

    name: str
    image_size: int
    construct: Callable[[int, int, int], nn.Module]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    committed: Path | None = None
    hub: tuple[str, str] | None = None


def own_design(name: str) -> Design:
    """Return the design of one of `ARCHITECTURES`."""
    architecture = ARCHITECTURES[name]

    def construct(image_size: int, num_classes: int, in_channels: int) -> nn.Module:
        if image_size % architecture.multiple:
            raise wrong_size(name, image_size, architecture.multiple)
        return architecture.build(
            image_size=image_size, in_channels=in_channels, num_classes=num_classes
        )

    return Design(name, architecture.image_size, construct, committed=committed_weights(name))


def timm_design(name: str, in_channels: int) -> Design:
    """Return the design of a timm model; mean and std are None unless there are 3 channels.

    Raises
    ------
    ModelError
        If timm does not know the name or the tag behind its dot.
    """
    cfg = _pretrained_cfg(name)
    if cfg is None:
        raise _unknown_name(name)
    size = int(cfg.input_size[-1])

    def construct(image_size: int, num_classes: int, in_channels: int) -> nn.Module:
        keywords = timm_keywords(name, image_size, num_classes, in_channels)
        return _create_timm(name, image_size, keywords)

    colour = in_channels == 3
    hub = (cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors") if cfg.hf_hub_id else None
    return Design(
        name,
        size,
        construct,
        mean=tuple(cfg.mean) if colour else None,
        std=tuple(cfg.std) if colour else None,
        hub=hub,
    )


def timm_keywords(name: str, image_size: int, num_classes: int, in_channels: int) -> dict[str, Any]:
    """Return what `timm.create_model` takes, beside the name, to build a model as fedta does."""
    cfg = _pretrained_cfg(name)
    if cfg is None:
        raise _unknown_name(name)
    keywords: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    if cfg.fixed_input_size and image_size != int(cfg.input_size[-1]):
        keywords["img_size"] = image_size
    return keywords


def _pretrained_cfg(name: str) -> PretrainedCfg | None:
    """Return timm's configuration of a name, or None if the name or its tag is unknown."""
    try:
        return get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # an unknown tag
        return None


def _unknown_name(name: str) -> ModelError:
    known = [*ARCHITECTURES, *timm.list_models(), *timm.list_pretrained()]
    hint = did_you_mean(name, known, otherwise="timm.list_models() lists them")
    return ModelError(
        f"model = {name!r} is not allowed: model is {', '.join(ARCHITECTURES)} or a model of "
        f"timm {timm.__version__}; {hint}"
    )


def _create_timm(name: str, image_size: int, keywords: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, **keywords)
    except Exception as error:  # each architecture refuses in its own way
        options = ", ".join(f"{key}={value}" for key, value in keywords.items())
        raise ModelError(
            f"model = {name!r} with image-size = {image_size} is not allowed: timm cannot build "
            f"it with {options} ({first_line(error)})"
        ) from error
    return model


def wrong_size(name: str, image_size: int, multiple: int) -> ModelError:
    """Return the error for an image size that the model's patches do not divide."""
    below = image_size // multiple * multiple
    near = " or ".join(str(size) for size in (below, below + multiple) if size)
    return ModelError(
        f"image-size = {image_size} is not allowed with model = {name!r}: the size is 0 for the "
        f"model's own, or a multiple of {multiple}, such as {near}"
    )


def misleading_names(name: str, weights: set[str], head: str) -> tuple[str, ...]:
    """Return a warning where a model's name and its weights disagree about DINO.

    Parameters
    ----------
    name : str
        Name of the model.
    weights : set of str
        Names of the loaded parameters; empty for random weights, which give no warning.
    head : str
        Name of the classifier, which DINO does not have.
    """
    cfg = _pretrained_cfg(name)
    if cfg is None or not weights:
        return ()
    warning = ""
    if name.endswith(".dino") and f"{head}.weight" in weights:
        warning = (
            f"model = {name!r} is DINO, which has no classifier, but the weights hold one: they "
            "may be those of a supervised model"
        )
    elif "." not in name and is_model_pretrained(f"{name}.dino"):
        warning = (
            f"model = {name!r} is not DINO: without a tag it is timm's {cfg.tag!r}, a supervised "
            f"model with its own weights and image normalisation; DINO is {name}.dino"
        )
    return (warning,) if warning else ()
