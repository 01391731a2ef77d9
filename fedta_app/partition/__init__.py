"""How a training set is divided among clients.

`schemes` holds the function `partition`, `allocation` the arithmetic of clients with exactly Nc
classes each, and `figure` a picture of who holds what.
"""

from fedta_app.partition.schemes import class_counts, partition, partition_digest

__all__ = ["class_counts", "partition", "partition_digest"]
