"""Scikit-learn's 8 x 8 digits, which need no download.

1,400 images, 140 of each class, are for training and validation; the other 397 are for test.
"""

from pathlib import Path

import numpy as np
import torch

from fedta_app.data.sets.base import Dataset, ImageSet
from fedta_app.seeding import numpy_generator

POOL_PER_CLASS = 140  # of 174 to 183 images of a class; the others are the test set


def _load(_: Path) -> tuple[ImageSet, ImageSet]:
    """Return the images for training and validation, and those for test."""
    from sklearn.datasets import load_digits  # a run on other images does not need it

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    everything = ImageSet(torch.from_numpy(images), torch.from_numpy(bunch.target).long())
    rng = numpy_generator("digits test split")  # no seed: the same for every run
    is_test = np.ones(len(everything), dtype=bool)
    for c in range(10):
        members = rng.permutation(np.flatnonzero(bunch.target == c))
        is_test[members[:POOL_PER_CLASS]] = False
    pool, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return everything.subset(pool), everything.subset(test)


# No augmentation: 8 pixels are too few for random crops, and mirrored digits are wrong.
DIGITS = Dataset("digits", classes=10, images=10 * POOL_PER_CLASS, load=_load)
