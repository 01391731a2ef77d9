"""Augmentation and resizing of whole batches of images, on the device where the images are."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from fedta_app.device.cuda import to_device


def random_crop_flip(
    images: Tensor, *, padding: int, flip: bool, generator: torch.Generator
) -> Tensor:
    """Pad each image with zeros, crop it back at a random place, and mirror a random half.

    Parameters
    ----------
    images : uint8 tensor, shape (N, channels, height, width)
        On any device.
    padding : int
        Pixels added on each side before the crop; 0 for none.
    flip : bool
        Whether to mirror each image left to right with probability one half.
    generator : torch.Generator
        On the CPU: the same numbers are drawn whatever the device of the images.

    Returns
    -------
    uint8 tensor, shape of `images`
        New images; the argument is unchanged.

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
    # one gather over flattened pixels, whose source positions serve all channels of an image
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
    """Turn uint8 images into the input of a model: normalised, resized, of a floating type.

    Parameters
    ----------
    images : uint8 tensor, shape (N, channels, height, width)
        On any device.
    size : int
        Height and width of the result in pixels; reached by bicubic interpolation with the
        anti-aliased kernel, that of Pillow and of torchvision's `resize`.
    mean, std : sequences of float
        Of each channel of the result, in the scale where 255 is 1. Three of them and images with
        one channel: the channel is used three times.
    dtype : torch.dtype
        Type of the result; the arithmetic is float32.

    Returns
    -------
    tensor, shape (N, len(mean), size, size)

    Raises
    ------
    ValueError
        If `size` is not positive, or `mean`, `std` and the channels of the images do not fit.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    if len(mean) != len(std) or images.shape[1] not in (1, len(mean)):
        raise ValueError(
            f"mean and std must have one value per channel of the {images.shape[1]}-channel "
            f"images, got {len(mean)} and {len(std)}"
        )
    # Interpolation weights sum to one, so normalising first gives the same, on fewer pixels.
    centre, scale = (_per_channel(tuple(values), images.device) for values in (mean, std))
    result = (images.float() / 255 - centre) / scale
    if result.shape[2:] != (size, size):
        result = functional.interpolate(result, (size, size), mode="bicubic", antialias=True)
    return result.to(dtype)


@lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the values as a column of channels; kept, since the copy to a GPU waits for it."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used outside
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
