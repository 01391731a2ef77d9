"""Dividing a training set among clients."""

from fedta_app.partition.schemes import class_counts, partition, partition_digest

__all__ = ["class_counts", "partition", "partition_digest"]
