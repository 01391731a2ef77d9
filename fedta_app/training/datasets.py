"""The data set of a configuration, and the cache of what a machine computes once."""

from fedta_app.cache import ArrayCache
from fedta_app.config import RunConfig
from fedta_app.data.folder import FOLDER, image_folder
from fedta_app.data.sets import DATASETS
from fedta_app.data.sets.base import Dataset
from fedta_app.files import expanded
from fedta_app.models.building import own_image_size
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
