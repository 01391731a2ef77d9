"""Vision transformers small enough for images of 8 and 32 pixels.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the network is timm's.
"""

from dataclasses import replace

from timm.models.vision_transformer import VisionTransformer

from fedta_app.models.architectures.base import Architecture


def _vit(
    name: str, *, image_size: int, patch: int, dim: int, depth: int, heads: int
) -> Architecture:
    def build(*, image_size: int, in_channels: int, num_classes: int) -> VisionTransformer:
        return VisionTransformer(
            image_size, patch, in_channels, num_classes,
            embed_dim=dim, depth=depth, num_heads=heads, mlp_ratio=2,
        )  # fmt: skip

    return Architecture(name, build, image_size, patch)


VIT_DIGITS = _vit("vit_digits", image_size=8, patch=2, dim=64, depth=4, heads=4)
VIT_CIFAR = _vit("vit_cifar", image_size=32, patch=4, dim=192, depth=6, heads=3)
# The same network for a control experiment: only its pre-trained weights differ.
VIT_CIFAR_SUPERVISED = replace(VIT_CIFAR, name="vit_cifar_supervised")
