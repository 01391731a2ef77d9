"""Augmentation and resizing of batches of images, on the device of the images."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from fedta_app.device.cuda import to_device
from fedta_app.files import file_sha256

CODE = file_sha256(Path(__file__))  # what is cached of images that were changed here depends on it


def random_crop_flip(
    images: Tensor, *, padding: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """Return images that are shifted at random and mirrored with probability one half.

    Parameters
    ----------
    images : uint8 tensor, shape (N, channels, height, width)
        On any device.
    padding : int
        Zero pixels added on each side before a random crop to the old size; 0 for no shift.
    flip : bool
        Whether to mirror images left to right.
    generator : torch.Generator
        On the CPU, so that all devices get the same random numbers.

    Returns
    -------
    uint8 tensor, shape of `images`

    Raises
    ------
    ValueError
        If `padding` is negative.
    """
    if padding < 0:
        raise ValueError(f"padding must be at least 0 pixels, got {padding}")
    number, channels, height, width = images.shape
    device = images.device
    offsets = torch.randint(0, 2 * padding + 1, (2, number, 1), generator=generator)
    top, left = to_device(offsets, device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = torch.randint(0, 2, (number, 1), generator=generator).bool()
        columns = torch.where(to_device(mirrored, device), columns.flip(1), columns)
    padded = functional.pad(images, (padding,) * 4)
    # One gather over flattened pixels; all channels of an image have the same source positions.
    source = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    source = source.view(number, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, source).view(images.shape)


def to_input(
    images: Tensor,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return uint8 images as the input of a model: normalised, resized, of a floating type.

    Parameters
    ----------
    images : uint8 tensor, shape (N, channels, height, width)
        On any device.
    size : int
        Height and width of the result in pixels; the interpolation is bicubic and anti-aliased,
        as in torchvision's `resize`.
    mean, std : sequences of float
        One value for each channel of the result, where 255 is 1. Images with one channel are
        repeated to fit.
    dtype : torch.dtype
        Type of the result; the arithmetic is float32.

    Returns
    -------
    tensor, shape (N, len(mean), size, size)

    Raises
    ------
    ValueError
        If `size` is not positive, or `mean` and `std` do not fit the channels of the images.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if len(mean) != len(std) or images.shape[1] not in (1, len(mean)):
        raise ValueError(
            f"mean and std must have one value per channel of the {images.shape[1]}-channel "
            f"images, got {len(mean)} and {len(std)}"
        )
    # Interpolation weights sum to one, so normalising the smaller image first gives the same.
    centre, scale = (_per_channel(tuple(values), images.device) for values in (mean, std))
    result = (images.float() / 255 - centre) / scale
    if result.shape[2:] != (size, size):
        result = functional.interpolate(result, (size, size), mode="bicubic", antialias=True)
    return result.to(dtype)


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the values as (C, 1, 1), cached because a copy to a GPU waits for the GPU."""
    with torch.inference_mode(False):  # an inference tensor cannot be used in training
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
