"""Random images with the sizes of CIFAR-100, for benchmarks without its files."""

from pathlib import Path

import torch

from fedta_app.data.sets.base import Dataset, ImageSet
from fedta_app.seeding import torch_generator


def _load(_: Path) -> tuple[ImageSet, ImageSet]:
    """Return the images for training and validation, and those for test; no seed changes them."""
    generator = torch_generator("synthetic images")
    pool, test = (
        ImageSet(
            torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.arange(count) % 100,
        )
        for count in (50_000, 10_000)
    )
    return pool, test


SYNTHETIC = Dataset("synthetic", classes=100, images=50_000, load=_load, crop_padding=4, flip=True)
