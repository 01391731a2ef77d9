"""Keys that are fine alone and contradict each other."""

from fedta_app.combinations.algorithm import check_algorithm
from fedta_app.combinations.masks import check_masks
from fedta_app.combinations.partition import check_classes, check_partition
from fedta_app.combinations.rounds import check_rounds
from fedta_app.keys import Keys

__all__ = ["check_classes", "check_combinations"]


def check_combinations(config: Keys) -> None:
    """Raise ConfigError when keys that are fine alone contradict each other."""
    check_rounds(config)
    check_masks(config)
    check_partition(config)
    check_algorithm(config)
