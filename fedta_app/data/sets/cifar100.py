"""CIFAR-100 (Krizhevsky, 2009)."""

from pathlib import Path

from fedta_app.data.sets.base import Dataset, ImageSet


def _load(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return the training and the test images."""
    # It imports torchvision, for which a command that reads no CIFAR-100 would wait a second.
    from fedta_app.data.cifar100_files import read_cifar100

    return read_cifar100(data_dir)


DATASET = Dataset("cifar100", classes=100, images=50_000, load=_load, crop_padding=4, flip=True)
