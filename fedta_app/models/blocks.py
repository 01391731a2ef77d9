"""Splitting a vision transformer in two: a frozen stem, and the last blocks, which are trained."""

import copy
from collections import OrderedDict

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fedta_app.errors import ModelError, first_line


def split_blocks(
    name: str, model: nn.Module, trained: int, images: Tensor
) -> tuple[nn.Module, nn.Module]:
    """Return the stem and the tail of a vision transformer: ``tail(stem(x)) == model(x)``.

    The stem embeds the images and applies all blocks but the last `trained`, always in evaluation
    mode; none of its parameters requires a gradient. The tail is those last blocks, the norm and
    the head. Both share the parameters of `model`, under the same names, and `model` itself stays
    as it is.

    Parameters
    ----------
    name : str
        What errors call the model.
    model : nn.Module
        A `timm.models.vision_transformer.VisionTransformer` of L blocks.
    trained : int
        How many blocks the tail has, from 1 to L.
    images : Tensor of shape (B, C, H, W)
        An input on which the two halves are checked against the whole.

    Returns
    -------
    stem : nn.Module
        Maps images (B, C, H, W) to tokens (B, T, d).
    tail : nn.Module
        Maps tokens (B, T, d) to logits (B, classes).

    Raises
    ------
    ModelError
        When the model is no such transformer, or has too few blocks.

    Examples
    --------
    >>> from fedta_app.models import build_model
    >>> built = build_model(
    ...     "vit_digits", weights="pretrained", image_size=0, num_classes=10, in_channels=1, seed=0
    ... )
    >>> image = torch.zeros(1, 1, 8, 8)
    >>> stem, tail = split_blocks("vit_digits", built.model, 1, image)
    >>> stem(image).shape
    torch.Size([1, 17, 64])
    >>> sorted({parameter.split(".")[0] for parameter, _ in tail.named_parameters()})
    ['blocks', 'head', 'norm']
    """
    if not isinstance(model, VisionTransformer):
        raise ModelError(
            f"trained-blocks = {trained} is not allowed with model = {name!r}: only a vision "
            "transformer has such blocks; set trained-blocks = 0 to train all weights"
        )
    blocks = list(model.blocks.named_children())
    if not 1 <= trained <= len(blocks):
        raise ModelError(
            f"trained-blocks = {trained} is not allowed with model = {name!r}: it has "
            f"{len(blocks)} blocks; trained-blocks is at most that, or 0 to train all weights"
        )
    cut = len(blocks) - trained
    stem, tail = _Stem(model, blocks[:cut]), _tail(model, blocks[cut:])
    _check(name, model, stem, tail, images)
    return stem, tail


class _Stem(nn.Module):
    """The embedding and the first blocks of a transformer."""

    def __init__(self, model: nn.Module, blocks: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        part = _twin(model)
        part.blocks = nn.Sequential(OrderedDict(blocks))
        part.norm = part.fc_norm = part.head = nn.Identity()
        part.attn_pool = None  # type: ignore[assignment]
        self.part = part.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens (B, T, d) of images (B, C, H, W)."""
        self.part.eval()  # each time, because the whole model shares these parts
        tokens: Tensor = self.part.forward_features(images)  # type: ignore[operator]
        return tokens


def _tail(model: nn.Module, blocks: list[tuple[str, nn.Module]]) -> nn.Module:
    """Return the model without its embedding and first blocks; it takes tokens (B, T, d)."""
    tail = _twin(model)
    for embedding in ("cls_token", "reg_token", "pos_embed"):
        tail._parameters.pop(embedding, None)
        setattr(tail, embedding, None)
    tail._pos_embed = nn.Identity()
    tail.patch_embed = tail.patch_drop = tail.norm_pre = nn.Identity()
    tail.blocks = nn.Sequential(OrderedDict(blocks))  # under their old names: blocks.9, ...
    return tail


def _twin(model: nn.Module) -> nn.Module:
    """Return a copy that shares the parts of the model, and whose parts can be replaced."""
    twin = copy.copy(model)
    for parts in ("_modules", "_parameters", "_buffers"):
        twin.__dict__[parts] = dict(model.__dict__[parts])
    return twin


def _check(name: str, model: nn.Module, stem: nn.Module, tail: nn.Module, images: Tensor) -> None:
    """Raise ModelError unless the two halves give the bits of the whole."""
    mode = model.training
    model.eval()
    tail.eval()
    try:
        with torch.no_grad():
            same = torch.equal(tail(stem(images)), model(images))
        reason = "its blocks are not all that it computes"
    except Exception as error:  # each architecture fails in its own way
        same, reason = False, first_line(error)
    finally:
        model.train(mode)
        tail.train(mode)
    if not same:
        raise ModelError(
            f"trained-blocks is not allowed with model = {name!r}: it cannot be split ({reason}); "
            "set trained-blocks = 0 to train all weights"
        )
