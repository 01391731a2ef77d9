"""The interface of the networks in this folder."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A network whose ``forward_features`` returns the input of its head, (B, d)."""

    head: nn.Linear

    @abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """Return the input of the head, (B, d).

        Parameters
        ----------
        images : Tensor
            Images (B, channels, height, width), or for a network that reads text the positions of
            its characters in the alphabet, int64 (B, T).
        """

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, num_classes), or with ``pre_logits`` the features themselves."""
        if pre_logits:
            return features
        logits: Tensor = self.head(features)
        return logits

    def get_classifier(self) -> nn.Linear:
        """Return the head."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, num_classes)."""
        return self.forward_head(self.forward_features(images))


@dataclass(frozen=True)
class Architecture:
    """A network by its name.

    Attributes
    ----------
    name : str
        A value of the key `model`.
    build : callable
        ``build(image_size=..., in_channels=..., num_classes=...)`` returns the network, with
        weights drawn from torch's global generator. For text, the classes are the alphabet.
    image_size : int
        Default size of the images; 0 for a network that reads text.
    multiple : int
        What any size must be a multiple of.
    """

    name: str
    build: Callable[..., nn.Module]
    image_size: int
    multiple: int = 1
