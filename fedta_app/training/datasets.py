"""The data set of a configuration, its partition, and the cache of what a machine computes once."""

import numpy as np
import numpy.typing as npt

from fedta_app.cache import ArrayCache
from fedta_app.config import RunConfig, in_keys
from fedta_app.data.folder import FOLDER, image_folder
from fedta_app.data.sets import DATASETS
from fedta_app.data.sets.base import Dataset
from fedta_app.errors import PartitionError
from fedta_app.files import expanded
from fedta_app.models.building import own_image_size
from fedta_app.partition.sharing import partition_with_shared
from fedta_app.runs.directory import cache_path


def find_dataset(config: RunConfig) -> Dataset:
    """Return the data set of a configuration; a folder of images is listed, but not yet read."""
    if config.dataset != FOLDER:
        return DATASETS[config.dataset]
    if config.image_folder.startswith("~"):
        folder = expanded(config.image_folder, f"image-folder = {config.image_folder!r}")
    else:  # an absolute path stays as it is
        data_dir = expanded(config.data_dir, f"data-dir = {config.data_dir!r}")
        folder = data_dir / config.image_folder
    size = config.image_size or own_image_size(config.model)
    return image_folder(folder, size, machine_cache(config))


def machine_cache(config: RunConfig) -> ArrayCache:
    """Return the cache in `cache-dir`, of `cache-gb` at most."""
    return ArrayCache(cache_path(config), config.cache_gb * 1e9)


def divide(config: RunConfig, labels: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each client's training images, given the labels of all (N,).

    Raises
    ------
    PartitionError
        When they cannot be divided as the configuration asks.
    """
    try:
        return partition_with_shared(
            labels,
            config.num_clients,
            scheme=config.partition,
            num_classes_per_client=config.num_classes_per_client,
            alpha=config.dirichlet_alpha,
            size_spread=config.size_spread,
            shared_fraction=config.shared_fraction,
            shared_portion=config.shared_portion,
            seed=config.seed,
        )
    except PartitionError as error:
        raise PartitionError(in_keys(str(error))) from error
