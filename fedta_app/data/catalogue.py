"""What is known of each data set without reading it; `fedta_app.data.loading` has their loaders."""

from typing import NamedTuple


class DatasetFacts(NamedTuple):
    """Number of classes, and of images for training and validation together."""

    classes: int
    images: int


DATASETS = {
    "digits": DatasetFacts(classes=10, images=1_400),
    "cifar100": DatasetFacts(classes=100, images=50_000),
    "synthetic": DatasetFacts(classes=100, images=50_000),
}
