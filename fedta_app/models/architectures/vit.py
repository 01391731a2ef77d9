"""Vision transformers small enough for images of 8 and 32 pixels.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the network is timm's.
"""

from dataclasses import replace
from functools import partial

from timm.models.vision_transformer import VisionTransformer

from fedta_app.models.architectures.base import Architecture


def _vit(
    name: str, *, image_size: int, patch: int, dim: int, depth: int, heads: int
) -> Architecture:
    constructor = partial(
        VisionTransformer,
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=2,
    )
    return Architecture(name, constructor, image_size, patch, "in_chans", "img_size")


VIT_DIGITS = _vit("vit_digits", image_size=8, patch=2, dim=64, depth=4, heads=4)
VIT_CIFAR = _vit("vit_cifar", image_size=32, patch=4, dim=192, depth=6, heads=3)
# The control: only the weights that come with it differ.
VIT_CIFAR_SUPERVISED = replace(VIT_CIFAR, name="vit_cifar_supervised")
