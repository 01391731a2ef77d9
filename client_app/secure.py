"""The client's half of secure aggregation: it sends integers behind masks, and opens no single one.

See `fedta_app.secure.protocol`, also for what of it is simulated.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedta_app.algorithms import MeanOfReplies, make_algorithm
from fedta_app.config import RunConfig
from fedta_app.secure import FixedPoint, SecureSum
from fedta_app.seeding import torch_generator


def secured(
    config: RunConfig, settings: Mapping[str, Any], vector: Tensor, bits: int = 64
) -> Tensor:
    """Return a vector (D,) as integers behind masks, where the configuration asks for that.

    Raises
    ------
    ValueError
        When the server asks for it in the clear.
    fedta_app.secure.RangeError
        When it holds a number that is too large.
    """
    if not config.secure_aggregation:
        return vector
    whole, client = SecureSum.from_config(config.seed, settings), int(settings["partition-id"])
    rounding = torch_generator(config.seed, "secure", whole.name, client)
    point = FixedPoint(bits, int(settings["secure-fraction"]))
    values = point.encode(vector.cpu(), rounding, len(whole.clients))
    return whole.masked(client, values)


def secured_update(
    config: RunConfig, settings: Mapping[str, Any], update: Tensor, num_examples: int
) -> Tensor:
    """Return an update (P,) times the client's weight in the mean, behind masks."""
    if not config.secure_aggregation:
        return update
    combined = make_algorithm(config.strategy, vars(config)).accumulator()
    assert isinstance(combined, MeanOfReplies)  # what else the server would need is refused
    if not update.isfinite().all():
        raise ValueError("the update has numbers that are not finite")
    weight = num_examples if combined.by_examples else 1
    within = update.clamp(-config.secure_range, config.secure_range)
    return secured(config, settings, weight * within.double(), bits=32)


def shares(config: RunConfig, settings: Mapping[str, Any]) -> Tensor:
    """Return the client's shares for a sum, as a uint8 vector; see `SecureSum.shares`."""
    whole = SecureSum.from_config(config.seed, settings)
    answered = [int(part) for part in str(settings["secure-answered"]).split()]
    return whole.shares(int(settings["partition-id"]), answered).flatten()
