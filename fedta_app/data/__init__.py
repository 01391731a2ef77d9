"""Data sets: what is known of them, how they are loaded, split and augmented."""

from fedta_app.data.catalogue import DATASETS
from fedta_app.data.images import random_crop_flip, to_input
from fedta_app.data.loading import DataSplits, ImageSet, load_data

__all__ = ["DATASETS", "DataSplits", "ImageSet", "load_data", "random_crop_flip", "to_input"]
