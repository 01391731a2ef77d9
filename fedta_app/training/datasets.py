"""The data set of a configuration, its partition, and the cache of what a machine computes once."""

import numpy as np
import numpy.typing as npt

from fedta_app.cache import ArrayCache
from fedta_app.combinations import check_classes
from fedta_app.config import RunConfig, in_keys
from fedta_app.data.folder import FOLDER, image_folder
from fedta_app.data.loading import DataSplits, draw_clients, load_data, load_side
from fedta_app.data.sets import DATASETS
from fedta_app.data.sets.base import Dataset
from fedta_app.errors import ConfigError, DataError, PartitionError
from fedta_app.files import expanded
from fedta_app.models.architectures import ARCHITECTURES
from fedta_app.models.building import own_image_size
from fedta_app.partition.schemes import NODES
from fedta_app.partition.sharing import partition_with_shared
from fedta_app.runs.directory import cache_path


def find_dataset(config: RunConfig, *, of_node: bool = False) -> Dataset:
    """Return the data set of a configuration; a folder of images is listed, but not yet read.

    With `of_node`, a folder has the images of one node.
    """
    if config.dataset != FOLDER:
        return DATASETS[config.dataset]
    if config.image_folder.startswith("~"):
        folder = expanded(config.image_folder, f"image-folder = {config.image_folder!r}")
    else:  # an absolute path stays as it is
        data_dir = expanded(config.data_dir, f"data-dir = {config.data_dir!r}")
        folder = data_dir / config.image_folder
    size = config.image_size or own_image_size(config.model)
    return image_folder(folder, size, machine_cache(config), of_node=of_node)


def load_run_data(config: RunConfig, node: int | None = None) -> DataSplits:
    """Return the data of a run, with sentences of its keys where they cannot be had.

    Parameters
    ----------
    node : int, optional
        The partition id of the node that asks, where nodes have images of their own.

    Raises
    ------
    ConfigError, DataError, ModelError, PartitionError
        When the data set does not fit the configuration, or cannot be read.
    """
    try:
        dataset = find_dataset(config, of_node=node is not None)
        check_classes(config, dataset.classes)
        _check_reads(config.model, dataset)
        folder = expanded(config.data_dir, f"data-dir = {config.data_dir!r}")
        if of_nodes(config):
            return load_side(dataset, folder, of_node=node is not None)
        split = _split_seed(config)
        data = load_data(dataset, folder, val_size=config.val_size, seed=split)
        if config.partition == "natural" and config.engine != "centralized":
            return draw_clients(data, config.num_clients, config.seed)
        return data
    except (DataError, PartitionError) as error:
        raise type(error)(in_keys(str(error))) from error


def of_nodes(config: RunConfig) -> bool:
    """Return whether each node of a deployment has images of its own."""
    return config.partition == NODES and config.engine != "centralized"


def knows_clients(config: RunConfig) -> bool:
    """Return whether the configuration says which images each client has."""
    return config.engine != "centralized" and not of_nodes(config)


def data_key(config: RunConfig) -> tuple[object, ...]:
    """Return what `load_run_data` depends on: where it is equal, so are the data."""
    natural = config.partition == "natural" and config.engine != "centralized"
    drawn = (config.num_clients, config.seed) if natural else ()
    folder = config.dataset == FOLDER
    return (
        config.dataset,
        config.data_dir,
        config.image_folder if folder else "",
        config.image_size or (own_image_size(config.model) if folder else 0),
        of_nodes(config),
        config.val_size,
        _split_seed(config),
        *drawn,
    )


def _split_seed(config: RunConfig) -> int:
    return config.seed if config.val_seed < 0 else config.val_seed


def _check_reads(model: str, dataset: Dataset) -> None:
    """Raise ConfigError unless the model reads what the data set holds: images, or text."""
    reads_text, is_text = own_image_size(model) == 0, bool(dataset.alphabet)
    if reads_text != is_text:
        read, held = ("text", "images") if reads_text else ("images", "text")
        networks = [name for name, network in ARCHITECTURES.items() if not network.image_size]
        allowed = f"model is {', '.join(networks)}" if is_text else "choose another model"
        raise ConfigError(
            f"model = {model!r} is not allowed with dataset = {dataset.name!r}: it reads {read}, "
            f"and the data set holds {held}; {allowed}"
        )


def machine_cache(config: RunConfig) -> ArrayCache:
    """Return the cache in `cache-dir`, of `cache-gb` at most."""
    return ArrayCache(cache_path(config), config.cache_gb * 1e9)


def divide(
    config: RunConfig,
    labels: npt.NDArray[np.int64],
    natural: npt.NDArray[np.int64] | None = None,
    node: int | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each client's training images, given the labels of all (N,).

    Parameters
    ----------
    natural : int64 array of shape (N,), optional
        The natural client of each image, where the data set has such clients.
    node : int, optional
        The client that all images are of, where nodes have images of their own.

    Raises
    ------
    PartitionError
        When they cannot be divided as the configuration asks.
    """
    if of_nodes(config):
        parts = [np.arange(0)] * config.num_clients
        return (
            parts if node is None else [*parts[:node], np.arange(len(labels)), *parts[node + 1 :]]
        )
    try:
        return partition_with_shared(
            labels,
            config.num_clients,
            scheme=config.partition,
            num_classes_per_client=config.num_classes_per_client,
            alpha=config.dirichlet_alpha,
            size_spread=config.size_spread,
            clients=natural,
            shared_fraction=config.shared_fraction,
            shared_portion=config.shared_portion,
            seed=config.seed,
        )
    except PartitionError as error:
        raise PartitionError(in_keys(str(error))) from error
