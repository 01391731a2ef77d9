"""The MNIST network of the paper that introduced federated averaging.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, section 3.
"""

import torch
from torch import Tensor, nn

from fedta_app.models.architectures.base import Architecture, Network


class CNN(Network):
    """Two 5x5 convolutions (32 and 64 channels), each with 2x2 max pooling, then 512 units.

    It has 1,663,370 parameters for 28x28 grey images of ten classes, as in the paper.
    """

    def __init__(self, *, image_size: int, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc = nn.Linear(64 * (image_size // 4) ** 2, 512)
        self.head = nn.Linear(512, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the hidden units (B, 512) after their ReLU."""
        hidden = torch.max_pool2d(torch.relu(self.conv1(images)), 2)
        hidden = torch.max_pool2d(torch.relu(self.conv2(hidden)), 2)
        return torch.relu(self.fc(hidden.flatten(1)))


ARCHITECTURE = Architecture("cnn", CNN, image_size=32, multiple=4)
