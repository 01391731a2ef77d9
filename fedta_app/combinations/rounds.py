"""Schedules, steps and rounds that contradict each other."""

import math

from fedta_app.algorithms import make_algorithm
from fedta_app.combinations.refusal import refuse
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.masks import needs_scores
from fedta_app.secure import FEWEST_IN_A_SUM

_LEAST_RATE = 1e-20  # a share of lr; float32 weights do not move from far larger ones on
_OLD_NOISE = "what clients keep is part of their updates, and holds noise of old batches"
_ONE_CLIENT = "it follows what single clients say, and one hostile client decides it for all rounds"


def check_rounds(config: Keys) -> None:
    """Refuse schedules, adaptive steps and rounds that contradict each other."""
    _check_schedule(config)
    _check_pace(config)
    _check_round(config)
    _check_superclients(config)


def _check_schedule(config: Keys) -> None:
    """Refuse a schedule that does not end within the rounds, or that leaves no rate."""
    if config.lr_schedule == "step":
        steps = (config.num_server_rounds - 1) // config.lr_step_rounds
        if config.lr_step_factor**steps < _LEAST_RATE:
            raise ConfigError(
                f"lr-step-factor = {config.lr_step_factor:g} is not allowed with lr-step-rounds = "
                f"{config.lr_step_rounds} and num-server-rounds = {config.num_server_rounds}: "
                f"after {steps} such steps the rate is below {_LEAST_RATE:g} times lr, and nothing "
                "moves"
            )
    if config.lr_schedule == "warmup-cosine" and config.warmup_rounds < 2:
        raise ConfigError(
            f"warmup-rounds = {config.warmup_rounds} is not allowed with lr-schedule = "
            "'warmup-cosine': warmup-rounds is at least 2 there, because lr is reached in the last "
            "of them"
        )
    if config.lr_schedule != "warmup-cosine" and config.warmup_rounds:
        raise ConfigError(
            f"warmup-rounds = {config.warmup_rounds} is not allowed with lr-schedule = "
            f"'{config.lr_schedule}': set lr-schedule = 'warmup-cosine', or warmup-rounds = 0"
        )
    if config.warmup_rounds >= config.num_server_rounds and config.warmup_rounds:
        raise ConfigError(
            f"warmup-rounds = {config.warmup_rounds} is not allowed with num-server-rounds = "
            f"{config.num_server_rounds}: warmup-rounds is below num-server-rounds"
        )
    if config.local_steps_from >= config.num_server_rounds:
        raise ConfigError(
            f"local-steps-from = {config.local_steps_from} is not allowed with num-server-rounds = "
            f"{config.num_server_rounds}: local-steps-from is below num-server-rounds"
        )


def _check_pace(config: Keys) -> None:
    """Refuse steps and batches that adapt where what they go by is not defined, or published."""
    if config.engine == "centralized":
        return
    algorithm = make_algorithm(config.strategy, vars(config))
    # Defences against hostile clients, which a pace that one client decides would get round.
    bounded = config.update_bound > 0 and not config.dp_noise  # with noise it is refused for more
    robust = not algorithm.own_masks
    if config.adacomm_rounds:
        refuse(
            config,
            f"adacomm-rounds = {config.adacomm_rounds} is not allowed with ",
            {
                "local-steps": (
                    config.local_steps == 0,
                    "it lowers a number of steps, so local-steps is at least 1",
                ),
                "local-steps-from": (
                    config.local_steps_from > 0,
                    "both set the steps of a round; one of the two is 0",
                ),
                "update-bound": (bounded, f"{_ONE_CLIENT}; update-bound is 0"),
                "strategy": (robust, f"{_ONE_CLIENT}; strategy is none of the robust rules"),
            },
        )
    if config.noise_scale_rounds:
        refuse(
            config,
            f"noise-scale-rounds = {config.noise_scale_rounds} is not allowed with ",
            {
                "local-steps": (
                    config.local_steps != 1,
                    "local-steps is 1, so that an update is one gradient",
                ),
                "clip-norm": (
                    config.clip_norm > 0,
                    "clip-norm is 0, because a clipped gradient has another norm",
                ),
                "superclient-clients": (
                    config.superclient_clients > 1,
                    "superclient-clients is 0 or 1: a chain has one update",
                ),
                "lr-batch-size": (
                    config.lr_batch_size > 0 and algorithm.personal,
                    "the rate would grow with the batch, until steps along pull overshoot",
                ),
                "dp-noise": (
                    config.dp_noise > 0,
                    "dp-noise is 0, because the batch size would tell of the updates",
                ),
                "mask-scope": (
                    config.mask_rule != "none" and config.mask_scope == "client",
                    "mask-scope is another, so that all updates are of the same weights",
                ),
                "update-bound": (bounded, f"{_ONE_CLIENT}; update-bound is 0"),
                "strategy": (
                    algorithm.mirrored or robust,
                    _OLD_NOISE
                    if algorithm.mirrored
                    else f"{_ONE_CLIENT}; strategy is none of the robust rules",
                ),
            },
        )


def _check_round(config: Keys) -> None:
    """Refuse a round that needs more good replies than it asks for."""
    if config.engine == "centralized" or not config.num_clients:
        return
    in_chain = max(1, config.superclient_clients)
    chains = max(1, round(config.fraction_train * math.ceil(config.num_clients / in_chain)))
    missing = -config.num_clients % in_chain  # in the last chain, which may be among them
    asked = chains * in_chain - missing
    each_round = (
        f"is not allowed with num-clients = {config.num_clients} and fraction-train = "
        f"{config.fraction_train:g}: a round asks {asked} of them"
    )
    if config.noise_scale_rounds and asked < 2:
        raise ConfigError(
            f"noise-scale-rounds = {config.noise_scale_rounds} {each_round}, and it compares the "
            "updates of at least 2"
        )
    if config.interference_every and asked < 2:
        raise ConfigError(
            f"interference-every = {config.interference_every} {each_round}, and it measures what "
            "the update of one does to others"
        )
    if config.min_clients_ok > asked:
        raise ConfigError(
            f"min-clients-ok = {config.min_clients_ok} {each_round}, so min-clients-ok is at most "
            "that"
        )
    if not config.secure_aggregation:
        return
    few = "and of two each can take itself away from the sum; it asks at least 3"
    if asked < FEWEST_IN_A_SUM:
        raise ConfigError(f"secure-aggregation = true {each_round}, {few}")
    scored = config.mask_rule != "none" and needs_scores(config.mask_rule)
    asked = max(1, round(config.calibration_fraction * config.num_clients))
    if scored and config.mask_scope != "server" and asked < FEWEST_IN_A_SUM:
        raise ConfigError(
            f"calibration-fraction = {config.calibration_fraction:g} is not allowed with "
            f"secure-aggregation = true and num-clients = {config.num_clients}: a round of the "
            f"mask asks {asked} of them, {few}"
        )


def _check_superclients(config: Keys) -> None:
    """Refuse chains of clients where each client's update from the round's weights is needed."""
    if config.superclient_clients < 2 or config.engine == "centralized":
        return
    algorithm = make_algorithm(config.strategy, vars(config))
    each = (
        "it takes every client's update from the weights of the round, and superclient-clients is "
        "0 or 1 there"
    )
    refuse(
        config,
        f"superclient-clients = {config.superclient_clients} is not allowed with ",
        {
            "strategy": (not algorithm.sequential, each),
            "task-figures": (config.task_figures, each),
            "update-bound": (config.update_bound > 0, each),
            "interference-every": (config.interference_every > 0, each),
        },
    )
