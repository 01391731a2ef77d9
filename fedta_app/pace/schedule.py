"""The learning rate and the local steps of a round."""

import math

from fedta_app.config import RunConfig


def learning_rate(config: RunConfig, server_round: int, batch_size: int | None = None) -> float:
    """Return the learning rate of round 1..num-server-rounds; it is constant within a round.

    `batch_size` is that of the round, if it has another than the configuration.

    `lr` below is the key's value, times `batch-size / lr-batch-size` where the latter is set: the
    linear scaling rule (Goyal et al., 2017, arXiv 1706.02677, section 2.1).

    - constant: `lr`
    - step: `lr * lr-step-factor ** floor((r - 1) / lr-step-rounds)`
    - cosine: `lr / 2 * (1 + cos(pi * (r - 1) / R))` (Loshchilov and Hutter, 2017, eq. 5)
    - warmup-cosine: `lr * r / W` for the first W rounds, then the cosine over the rounds left
    """
    elapsed, lr = server_round - 1, config.lr
    if config.lr_batch_size:
        lr *= (batch_size or config.batch_size) / config.lr_batch_size
    if config.lr_schedule == "step":
        return lr * float(config.lr_step_factor ** (elapsed // config.lr_step_rounds))
    if config.lr_schedule == "cosine":
        return _cosine(lr, elapsed, config.num_server_rounds)
    if config.lr_schedule == "warmup-cosine":
        warmup = config.warmup_rounds
        if server_round <= warmup:
            return lr * server_round / warmup
        return _cosine(lr, elapsed - warmup, config.num_server_rounds - warmup)
    return lr


def local_steps(config: RunConfig, server_round: int) -> int:
    """Return the local steps J of round 1..num-server-rounds of a federation.

    One in the first `local-steps-from` rounds, then `local-steps`: post-local SGD (Lin et al.,
    "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020, arXiv 1808.07217). 0 stands for one
    pass over a client's images.
    """
    return 1 if server_round <= config.local_steps_from else config.local_steps


def schedule_warning(config: RunConfig) -> str:
    """Return a sentence if a key that counts rounds never acts in this run, else "".

    Such a run is the same as one without that key. It is not refused, because runs of a few rounds,
    to try something, are of use.
    """
    return _constant_rate(config) or _too_late(config)


def _constant_rate(config: RunConfig) -> str:
    """Return a sentence if the schedule lowers `lr` in no round."""
    rounds, warmup = config.num_server_rounds, config.warmup_rounds
    name = f"lr-schedule = '{config.lr_schedule}' lowers lr in no round"
    if config.lr_schedule == "step" and config.lr_step_factor == 1:
        return f"{name}: lr-step-factor = 1"
    if config.lr_schedule == "step" and config.lr_step_rounds >= rounds:
        return (
            f"{name}: its first step would come after lr-step-rounds = {config.lr_step_rounds} "
            f"rounds, and num-server-rounds = {rounds}"
        )
    if config.lr_schedule.endswith("cosine") and rounds - warmup == 1:
        after = f" after warmup-rounds = {warmup}" if warmup else ""
        return f"{name}: num-server-rounds = {rounds} leaves its cosine one round{after}"
    return ""


def _too_late(config: RunConfig) -> str:
    """Return a sentence if something that happens every so many rounds would come after them."""
    if config.engine == "centralized":
        return ""
    rounds = config.num_server_rounds
    counted = {
        "head-refresh": config.head_refresh - 1,  # after the last round it makes a head as well
        "adacomm-rounds": config.adacomm_rounds,
        "noise-scale-rounds": config.noise_scale_rounds,
    }
    late = [key for key, after in counted.items() if after >= rounds]
    return f"{late[0]} never acts: num-server-rounds = {rounds}" if late else ""


def _cosine(peak: float, elapsed: int, length: int) -> float:
    return 0.5 * peak * (1 + math.cos(math.pi * elapsed / length))
