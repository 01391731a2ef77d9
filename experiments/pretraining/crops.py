"""Augmentation of whole batches for pre-training: random resized crops and colours, no loops.

The distortions of DINO (Caron et al., "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021, after BYOL) without the blur, which at 32 pixels leaves little to see.
Random numbers are drawn on the CPU, so that every device sees the same images.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_LUMA = (0.299, 0.587, 0.114)
# NTSC's luma and the two colour axes; a turn of those two changes the hue and keeps the luma.
_YIQ = torch.tensor([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
_RGB = torch.linalg.inv(_YIQ)


def uniform(number: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Return so many random numbers between two bounds, on the CPU."""
    return low + (high - low) * torch.rand(number, generator=generator)


def _chance(number: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(number, generator=generator) < probability


def resized_crops(
    images: Tensor, *, size: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Cut a random box out of each image, resize it, and mirror a random half of them.

    Parameters
    ----------
    images : uint8 tensor, shape (N, channels, height, width)
        On any device.
    size : int
        Height and width of the result in pixels; reached by bilinear interpolation.
    scale : tuple of float
        Smallest and largest share of the area; the aspect ratio is between 3/4 and 4/3.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    float32 tensor, shape (N, channels, size, size)
        In [0, 1], on the device of `images`.
    """
    number = len(images)
    area = uniform(number, *scale, generator)
    ratio = uniform(number, math.log(3 / 4), math.log(4 / 3), generator).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    boxes = torch.zeros(number, 2, 3)
    boxes[:, 0, 0] = torch.where(_chance(number, 0.5, generator), -width, width)
    boxes[:, 1, 1] = height
    boxes[:, 0, 2] = uniform(number, -1, 1, generator) * (1 - width)
    boxes[:, 1, 2] = uniform(number, -1, 1, generator) * (1 - height)
    grid = functional.affine_grid(
        boxes.to(images.device), [number, images.shape[1], size, size], align_corners=False
    )
    return functional.grid_sample(
        images.float() / 255, grid, padding_mode="border", align_corners=False
    )


def colour_jitter(
    images: Tensor,
    generator: torch.Generator,
    *,
    probability: float = 0.8,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    grey: float = 0.2,
) -> Tensor:
    """Change the colours of a random share of the images, and turn a random share grey.

    Parameters
    ----------
    images : float tensor, shape (N, 3, height, width)
        In [0, 1], on any device.
    generator : torch.Generator
        On the CPU.
    probability, grey : float
        Shares of the images that are changed, and turned grey.
    brightness, contrast, saturation : float
        A factor is drawn from 1 minus this to 1 plus this.
    hue : float
        Largest turn of the hue, where 1 is a full circle.

    Returns
    -------
    float tensor, shape of `images`
        New images in [0, 1].
    """
    number, device = len(images), images.device
    changed = _chance(number, probability, generator)

    def factor(strength: float, neutral: float = 1.0) -> Tensor:
        drawn = uniform(number, neutral - strength, neutral + strength, generator)
        return torch.where(changed, drawn, neutral)

    bright, contrasted, saturated, turn = (
        factor(brightness),
        factor(contrast),
        factor(saturation),
        factor(hue, neutral=0.0) * 2 * math.pi,
    )
    saturated = torch.where(_chance(number, grey, generator), 0.0, saturated)
    matrix = _colour_matrix(saturated, turn).to(device)
    bright, contrasted = (value.to(device).view(-1, 1, 1, 1) for value in (bright, contrasted))
    luma = torch.tensor(_LUMA, device=device).view(3, 1, 1)
    result = (images * bright).clamp(0, 1)
    level = (result * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    result = (contrasted * result + (1 - contrasted) * level).clamp(0, 1)
    return (matrix @ result.flatten(2)).view(images.shape).clamp(0, 1)


def _colour_matrix(saturation: Tensor, turn: Tensor) -> Tensor:
    """Return the 3x3 matrix, per image, that turns the hue and then scales the saturation."""
    rotation = torch.zeros(len(turn), 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = saturation * turn.cos()
    rotation[:, 2, 1] = saturation * turn.sin()
    rotation[:, 1, 2] = -rotation[:, 2, 1]
    matrix: Tensor = _RGB @ rotation @ _YIQ
    return matrix


def solarise(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Invert the bright half of the values (0.5 and above) of a random share of the images."""
    chosen = _chance(len(images), probability, generator).to(images.device).view(-1, 1, 1, 1)
    return torch.where(chosen & (images >= 0.5), 1 - images, images)
