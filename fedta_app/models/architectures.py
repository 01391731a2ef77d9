"""The networks of this repository, beside those of timm.

``vit_digits`` and ``vit_cifar`` are vision transformers (Dosovitskiy et al., "An Image is Worth
16x16 Words", ICLR 2021) small enough for 8 and 32 pixel images; ``cnn`` is the convolutional
network of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data" (AISTATS 2017, section 3); ``resnet_gn`` is a ResNet-18 (He et al., CVPR 2016) with group
normalisation, which Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning"
(ICML 2020), recommend on non-iid clients, where batch statistics do not average.

Each offers timm's interface: ``forward_features``, ``forward_head(x, pre_logits=...)`` and
``get_classifier``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A network whose ``forward_features`` already gives the input of its head, [B, d]."""

    head: nn.Linear

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return the input of the head, [B, d], for images [B, channels, height, width]."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits [B, num_classes], or the features themselves (``pre_logits``)."""
        if pre_logits:
            return features
        logits: Tensor = self.head(features)
        return logits

    def get_classifier(self) -> nn.Linear:
        """Return the head."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, [B, num_classes]."""
        return self.forward_head(self.forward_features(images))


class CNN(Network):
    """Two 5x5 convolutions (32 and 64 channels), each with 2x2 max pooling, then 512 units.

    The MNIST network of McMahan et al. (2017): 1,663,370 parameters for 28x28 grey images. (Their
    CIFAR-10 network is that of an old TensorFlow tutorial, with local response normalisation.)
    """

    def __init__(self, *, image_size: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc = nn.Linear(64 * (image_size // 4) ** 2, 512)
        self.head = nn.Linear(512, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the 512 hidden units after their ReLU."""
        hidden = torch.max_pool2d(torch.relu(self.conv1(images)), 2)
        hidden = torch.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        return torch.relu(self.fc(hidden.flatten(1)))


def _group_norm(channels: int) -> nn.GroupNorm:
    """Normalise groups of 16 channels (Wu and He, "Group Normalization", ECCV 2018, table 3)."""
    return nn.GroupNorm(channels // 16, channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = _group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _group_norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, _group_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual + shortcut)."""
        residual = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(residual + self.shortcut(x))


class ResNetGN(Network):
    """ResNet-18 at half its width (32, 64, 128, 256 channels), GroupNorm, a 3x3 stem, no pooling.

    Two blocks per stage and average pooling before the head; 2.8 million parameters.
    """

    def __init__(self, *, image_size: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = (32, 64, 128, 256)
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.norm = _group_norm(widths[0])
        blocks = []
        for stage, width in enumerate(widths):
            blocks.append(ResidualBlock(widths[max(stage - 1, 0)], width, 1 if stage == 0 else 2))
            blocks.append(ResidualBlock(width, width, 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the average of the last feature map, 256 numbers per image."""
        hidden = self.blocks(torch.relu(self.norm(self.stem(images))))
        features: Tensor = hidden.mean(dim=(2, 3))
        return features


def _vit(
    *, patch: int, dim: int, depth: int, heads: int, mlp_ratio: float
) -> Callable[..., VisionTransformer]:
    return partial(
        VisionTransformer,
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
    )


@dataclass(frozen=True)
class Architecture:
    """How to build one of our networks, its default image size, and what that must divide by."""

    constructor: Callable[..., nn.Module]
    image_size: int
    multiple: int = 1
    channels_keyword: str = "in_channels"
    size_keyword: str = "image_size"

    def build(self, *, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        """Return the network, initialised from torch's global generator."""
        sizes = {self.size_keyword: image_size, self.channels_keyword: in_channels}
        return self.constructor(num_classes=num_classes, **sizes)


_VIT_KEYWORDS = {"channels_keyword": "in_chans", "size_keyword": "img_size"}
_VIT_CIFAR = Architecture(
    _vit(patch=4, dim=192, depth=6, heads=3, mlp_ratio=2), 32, 4, **_VIT_KEYWORDS
)
ARCHITECTURES: dict[str, Architecture] = {
    "vit_digits": Architecture(
        _vit(patch=2, dim=64, depth=4, heads=4, mlp_ratio=2), 8, 2, **_VIT_KEYWORDS
    ),
    "vit_cifar": _VIT_CIFAR,
    "vit_cifar_supervised": _VIT_CIFAR,  # the control: only the weights that come with it differ
    "cnn": Architecture(CNN, 32, 4),
    "resnet_gn": Architecture(ResNetGN, 32),
}
