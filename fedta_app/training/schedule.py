"""The learning rate of a round."""

import math

from fedta_app.config import RunConfig


def learning_rate(config: RunConfig, server_round: int) -> float:
    """Return the learning rate of round 1..num-server-rounds; it is constant within a round.

    - constant: `lr`
    - step: `lr * lr-step-factor ** floor((r - 1) / lr-step-rounds)`
    - cosine: `lr / 2 * (1 + cos(pi * (r - 1) / R))` (Loshchilov and Hutter, 2017, eq. 5)
    - warmup-cosine: `lr * r / W` for the first W rounds, then the cosine over the rounds left
    """
    elapsed = server_round - 1
    if config.lr_schedule == "step":
        return config.lr * float(config.lr_step_factor ** (elapsed // config.lr_step_rounds))
    if config.lr_schedule == "cosine":
        return _cosine(config.lr, elapsed, config.num_server_rounds)
    if config.lr_schedule == "warmup-cosine":
        warmup = config.warmup_rounds
        if server_round <= warmup:
            return config.lr * server_round / warmup
        return _cosine(config.lr, elapsed - warmup, config.num_server_rounds - warmup)
    return config.lr


def _cosine(peak: float, elapsed: int, length: int) -> float:
    return 0.5 * peak * (1 + math.cos(math.pi * elapsed / length))
