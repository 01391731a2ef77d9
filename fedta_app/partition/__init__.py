"""Dividing a training set among clients."""

from fedta_app.partition.schemes import class_counts, partition, partition_digest
from fedta_app.partition.sharing import label_distances, partition_with_shared

__all__ = [
    "class_counts",
    "label_distances",
    "partition",
    "partition_digest",
    "partition_with_shared",
]
