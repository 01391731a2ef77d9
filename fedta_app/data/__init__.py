"""Data sets: reading, splitting and augmenting them."""

from fedta_app.data.folder import image_folder
from fedta_app.data.images import random_crop_flip, to_input
from fedta_app.data.loading import DataSplits, load_data
from fedta_app.data.sets import DATASETS
from fedta_app.data.sets.base import Dataset, ImageSet

__all__ = [
    "DATASETS",
    "DataSplits",
    "Dataset",
    "ImageSet",
    "image_folder",
    "load_data",
    "random_crop_flip",
    "to_input",
]
