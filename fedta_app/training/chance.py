"""How well a model may do by guessing."""

import math


def highest_by_chance(num_classes: int, images: int) -> float | None:
    """Return the accuracy up to which a model may be guessing: 1 / classes + 3 standard errors.

    Return None if so few images cannot tell a guess from a model that has learned something: where
    the errors are larger than a quarter of the way from 1 / classes to 1.

    Examples
    --------
    >>> round(highest_by_chance(100, 10_000), 4)
    0.013
    >>> highest_by_chance(2, 20) is None
    True
    """
    chance = 1 / num_classes
    errors = 3 * math.sqrt(chance * (1 - chance) / images)
    enough = images >= num_classes and errors <= (1 - chance) / 4
    return chance + errors if enough else None
