"""Images with labels, and the description of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """uint8 images (N, channels, height, width) with int64 labels (N,) on one device.

    Examples
    --------
    >>> images = ImageSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([4, 5, 6]))
    >>> len(images), images.subset([0, 2]).labels.tolist()
    (3, [4, 6])
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the images and labels on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def subset(self, indices: npt.ArrayLike | Tensor) -> "ImageSet":
        """Return a copy of the images at integer `indices` (n,), on the same device."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        return ImageSet(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """A data set: what is known before it is read, and the function that reads it.

    Attributes
    ----------
    name : str
        The value of the key `dataset`.
    classes : int
        How many classes there are.
    images : int
        How many images there are for training and validation together.
    load : callable
        ``load(data_dir)`` returns the images for training and validation, and those for test.
    crop_padding : int
        Of the augmentation that suits the images (`fedta_app.data.images.random_crop_flip`).
    flip : bool
        Likewise.
    note : str
        A sentence about how the images are divided, to show to the user.
    """

    name: str
    classes: int
    images: int
    load: Callable[[Path], tuple[ImageSet, ImageSet]]
    crop_padding: int = 0
    flip: bool = False
    note: str = ""
