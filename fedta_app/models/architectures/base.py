"""What a network of fedta consists of. The networks themselves are the other files here."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Architecture:
    """How one of our networks is built.

    Attributes
    ----------
    name : str
        The value of the key `model`.
    constructor : callable
        Takes `num_classes`, and channels and size of the images by the keywords named below.
    image_size : int
        Default size of the images.
    multiple : int
        What any size must be a multiple of.
    """

    name: str
    constructor: Callable[..., nn.Module]
    image_size: int
    multiple: int = 1
    channels_keyword: str = "in_channels"
    size_keyword: str = "image_size"

    def build(self, *, image_size: int, in_channels: int, num_classes: int) -> nn.Module:
        """Return the network, initialised from torch's global generator."""
        sizes = {self.size_keyword: image_size, self.channels_keyword: in_channels}
        return self.constructor(num_classes=num_classes, **sizes)
