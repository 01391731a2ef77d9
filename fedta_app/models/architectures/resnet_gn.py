"""A ResNet-18 with group normalisation.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Hsieh et al., "The Non-IID
Data Quagmire of Decentralized Machine Learning", ICML 2020, recommend group normalisation for
non-iid clients, whose batch statistics differ too much to be averaged.
"""

import torch
from torch import Tensor, nn

from fedta_app.models.architectures.base import Architecture, Network


def _group_norm(channels: int) -> nn.GroupNorm:
    """Return a layer with groups of 16 channels (Wu and He, ECCV 2018, table 3)."""
    return nn.GroupNorm(channels // 16, channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where the shape changes."""

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
        """Return the averages (B, 256) of the last feature map."""
        hidden = self.blocks(torch.relu(self.norm(self.stem(images))))
        features: Tensor = hidden.mean(dim=(2, 3))
        return features


ARCHITECTURE = Architecture("resnet_gn", ResNetGN, image_size=32)
