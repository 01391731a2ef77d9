"""Partitions that a data set does not allow."""

from fedta_app.algorithms import make_algorithm
from fedta_app.combinations.refusal import refuse
from fedta_app.conditions import SCORED
from fedta_app.data.folder import FOLDER
from fedta_app.data.sets import DATASETS
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.masks import rule_named
from fedta_app.partition.schemes import NODES


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
    if config.partition == NODES and federated:
        _check_nodes(config)
    if config.shared_fraction and config.missing_clients == "go-on" and _in_sums(config):
        raise ConfigError(
            f"shared-fraction = {config.shared_fraction:g} is not allowed with missing-clients = "
            "'go-on': in the sums for a head or a mask a shared image counts for one client, and "
            "would be lost with it though others have it; missing-clients is refuse there"
        )
    if known:
        check_classes(config, known.classes)


def _in_sums(config: Keys) -> bool:
    """Return whether a head or a mask is made from a sum over the images of all clients."""
    scored = SCORED.holds(config) and rule_named(config.mask_rule).statistic is None
    summed = scored and config.mask_scope == "global" and config.calibration_fraction == 1
    return config.engine != "centralized" and (config.head == "ridge" or summed)


def _check_nodes(config: Keys) -> None:
    """Refuse what takes the images of all clients in one place."""
    algorithm = make_algorithm(config.strategy, vars(config))
    everywhere = "the server measures it on clients' images, and has none of theirs"
    refuse(
        config,
        f"partition = '{NODES}' is not allowed with ",
        {
            "engine": (
                config.engine == "in-process",
                "nodes have images of their own in a deployment only (docs/deployment.md)",
            ),
            "dataset": (config.dataset != FOLDER, f"dataset is {FOLDER} there"),
            "clients-per-node": (config.clients_per_node > 1, "a node is one client there"),
            "size-spread": (config.size_spread > 0, "nodes have as many images as they have"),
            "shared-fraction": (config.shared_fraction > 0, "nobody has images to share"),
            "task-figures": (config.task_figures, everywhere),
            "interference-every": (config.interference_every > 0, everywhere),
            "personal-ridge": (config.personal_ridge > 0, everywhere),
            "strategy": (bool(algorithm.adaptation), everywhere),
        },
    )


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
