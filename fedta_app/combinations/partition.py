"""Partitions that a data set does not allow."""

from fedta_app.data.sets import DATASETS
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys


def check_partition(config: Keys) -> None:
    """Refuse partitions that a data set does not allow."""
    known = DATASETS.get(config.dataset)  # how many classes a folder has only the disk knows
    federated = config.engine != "centralized"
    if config.partition == "natural" and federated and not (known and known.natural):
        having = [name for name, dataset in DATASETS.items() if dataset.natural]
        raise ConfigError(
            f"partition = 'natural' is not allowed with dataset = '{config.dataset}', which does "
            f"not say whose its examples are: dataset is {', '.join(having)}"
        )
    if known:
        check_classes(config, known.classes)


def check_classes(config: Keys, num_classes: int) -> None:
    """Raise ConfigError when a data set of so many classes cannot be partitioned as asked."""
    if config.partition != "classes" or config.engine == "centralized":
        return
    if config.num_classes_per_client > num_classes:
        raise ConfigError(
            f"num-classes-per-client = {config.num_classes_per_client} is not allowed with "
            f"dataset = '{config.dataset}': it has {num_classes} classes"
        )
    slots = config.num_clients * config.num_classes_per_client
    if config.num_clients and slots < num_classes:
        raise ConfigError(
            f"num-classes-per-client = {config.num_classes_per_client} is not allowed with "
            f"num-clients = {config.num_clients}: together they hold {slots} of the "
            f"{num_classes} classes of '{config.dataset}', and every class needs a client"
        )
