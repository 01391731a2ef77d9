"""Images or windows of text with labels, and the description of a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedta_app.device.cuda import to_device

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, or windows of text in their place, with labels, on one device.

    Attributes
    ----------
    images : Tensor
        uint8 images (N, channels, height, width), or of N windows of T characters their positions
        in the alphabet of the data set, uint8 (N, T).
    labels : Tensor
        int64 (N,): the class, or the position of the character that follows the window.
    clients : Tensor, optional
        int64 (N,): whom each example comes from, such as the role that speaks; None where the data
        set does not know.

    Examples
    --------
    >>> images = ImageSet(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([4, 5, 6]))
    >>> len(images), images.subset([0, 2]).labels.tolist()
    (3, [4, 6])
    """

    images: Tensor
    labels: Tensor
    clients: Tensor | None = None

    @property
    def are_features(self) -> bool:
        """Whether the features (N, d) of the images, float32, are in their place."""
        return self.images.ndim == 2 and self.images.is_floating_point()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the images and labels on `device`."""
        clients = None if self.clients is None else self.clients.to(device)
        return ImageSet(self.images.to(device), self.labels.to(device), clients)

    def subset(self, indices: npt.ArrayLike | Tensor) -> "ImageSet":
        """Return a copy of the images at integer `indices` (n,), on the same device."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        beside = to_device(chosen, self.labels.device)  # cached outputs of blocks may lie elsewhere
        clients = None if self.clients is None else self.clients[beside]
        return ImageSet(self.images[chosen], self.labels[beside], clients)


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
        How many images there are for training and validation together; 0 where the files decide.
    load : callable
        ``load(data_dir)`` returns the images for training and validation, and those for test.
    crop_padding : int
        Of the augmentation that suits the images (`fedta_app.data.images.random_crop_flip`).
    flip : bool
        Likewise.
    note : str or callable
        A sentence about how the images are divided, to show to the user, or ``note(data_dir)``.
    split : callable, optional
        ``split(pool, val_size)`` returns the indices of training and of validation examples; by
        default a draw with equal class proportions (`fedta_app.data.loading.stratified_split`).
    alphabet : str
        Of a data set of text, the characters at the positions that stand for them; else empty.
    natural : str
        What the clients of ``partition = "natural"`` are; empty where there are none.
    class_names : tuple of str
        Of an image folder, in the order of the labels; else empty.
    """

    name: str
    classes: int
    images: int
    load: Callable[[Path], tuple[ImageSet, ImageSet]]
    crop_padding: int = 0
    flip: bool = False
    note: str | Callable[[Path], str] = ""
    split: Callable[[ImageSet, float], tuple[IntArray, IntArray]] | None = None
    alphabet: str = ""
    natural: str = ""
    class_names: tuple[str, ...] = ()
