"""An algorithm, models of clients' own and noise, where they are not defined."""

from fedta_app.algorithms import MeanOfReplies, make_algorithm
from fedta_app.combinations.refusal import refuse
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.keys.algorithm import ON_HEAD, ON_MASK
from fedta_app.masks import needs_scores, rule_named

_OWN_MODELS = "by it clients have models of their own"
_MORE = "its server needs more than the mean of the updates"
_MIRRORED = (
    "its server keeps the mean of what the clients keep, and it would not be that any more once "
    "the server shortens, cuts or blurs what they send"
)


def check_algorithm(config: Keys) -> None:
    """Refuse what an algorithm, models of clients' own or noise are not defined for."""
    if config.engine == "centralized":
        return
    _check_strategy(config)
    _check_attack(config)
    _check_personal_layers(config)
    _check_personal_ridge(config)
    _check_privacy(config)
    _check_secure(config)


def _check_strategy(config: Keys) -> None:
    """Refuse values that the algorithm cannot use, and masks for which it is not defined."""
    algorithm = make_algorithm(config.strategy, vars(config))  # it refuses values by itself
    if not algorithm.own_masks and config.mask_rule != "none" and config.mask_scope == "client":
        raise ConfigError(
            f"mask-scope = 'client' is not allowed with strategy = '{config.strategy}': it "
            "compares all entries of the updates, which takes one mask for all clients"
        )
    if algorithm.mirrored and config.update_bound:
        raise ConfigError(
            f"update-bound = {config.update_bound:g} is not allowed with strategy = "
            f"'{config.strategy}': {_MIRRORED}; update-bound is 0 there"
        )
    bounded = config.update_bound and not config.dp_noise  # with noise it is refused for more
    if config.strategy == "q-ffl" and config.fairness and bounded:
        raise ConfigError(
            f"update-bound = {config.update_bound:g} is not allowed with strategy = 'q-ffl' and "
            f"fairness = {config.fairness:g}: a client weighs by the loss that it says it has, and "
            "by that can be the whole mean; update-bound is 0 there"
        )
    if config.head == "probe":
        plain = "the probe's training takes the plain mean of all updates; head is random or ridge"
        refuse(
            config,
            "head = 'probe' is not allowed with ",
            {
                "update-bound": (bool(bounded), plain),
                "strategy": (not algorithm.own_masks, plain),
            },
        )
    if config.task_figures and config.head_refresh:
        raise ConfigError(
            f"task-figures = true is not allowed with head-refresh = {config.head_refresh}: it "
            "scales what was learned under one head, and each refresh makes another; head-refresh "
            "is 0 there"
        )
    if algorithm.personal and config.head_refresh:
        raise ConfigError(
            f"head-refresh = {config.head_refresh} is not allowed with strategy = "
            f"'{config.strategy}': its features are of one model for all clients, and each has "
            "another; head-refresh is 0 there"
        )


def _check_attack(config: Keys) -> None:
    """Refuse an attack by no client, or on a phase that the run does not have."""
    if not config.attackers:
        return
    if config.num_clients and not round(config.attackers * config.num_clients):
        raise ConfigError(
            f"attackers = {config.attackers:g} is not allowed with num-clients = "
            f"{config.num_clients}: of these it is none; attackers is 0, or for example "
            f"{1 / config.num_clients:g}"
        )
    scored = config.mask_rule != "none" and needs_scores(config.mask_rule)
    refuse(
        config,
        f"attack = '{config.attack}' is not allowed with ",
        {
            "head": (
                config.attack in ON_HEAD and config.head != "ridge",
                "it is on the sums for a ridge head; head is ridge there",
            ),
            "personal-ridge": (
                config.attack in ON_HEAD and config.personal_ridge > 0,
                "its heads are made from images, and not from what hostile clients send",
            ),
            "interference-every": (
                config.attack in ON_HEAD and config.interference_every > 0,
                "it compares the head with one made from images, which the attack does not reach",
            ),
            "mask-rule": (
                config.attack in ON_MASK
                and not (scored and rule_named(config.mask_rule).statistic is None),
                "it is on scores, which this rule does not have alone",
            ),
            "mask-scope": (
                config.attack in ON_MASK and config.mask_scope == "server",
                "it is on clients' scores; mask-scope is another there",
            ),
        },
    )


def _check_personal_layers(config: Keys) -> None:
    """Refuse layers that nobody trains, and what takes one model for all clients, or others."""
    if config.personal_layers == "none":
        return
    algorithm = make_algorithm(config.strategy, vars(config))
    patterns = [part.strip() for part in config.personal_layers.split(",")]
    refuse(
        config,
        f"personal-layers = '{config.personal_layers}' is not allowed with ",
        {
            "head": (
                "head" in patterns and config.head != "random",
                "it is made first and then frozen; head is random there",
            ),
            "strategy": (bool(algorithm.personal or algorithm.adaptation), _OWN_MODELS),
            "head-refresh": (
                config.head_refresh > 0,
                "its features are of one model for all clients",
            ),
            "task-figures": (config.task_figures, "it measures one model for all clients"),
            "interference-every": (
                config.interference_every > 0,
                "it measures one model for all clients",
            ),
        },
    )


def _check_personal_ridge(config: Keys) -> None:
    """Refuse heads of clients' own without a ridge head, or beside other models of their own."""
    if not config.personal_ridge:
        return
    algorithm = make_algorithm(config.strategy, vars(config))
    refuse(
        config,
        f"personal-ridge = {config.personal_ridge:g} is not allowed with ",
        {
            "head": (config.head != "ridge", "head is ridge there"),
            "strategy": (bool(algorithm.personal or algorithm.adaptation), _OWN_MODELS),
            "personal-layers": (config.personal_layers != "none", "one of the two is enough"),
        },
    )


def _check_privacy(config: Keys) -> None:
    """Refuse noise where the norm of what it hides is not bounded, or where more is published."""
    if not config.dp_noise:
        return
    said = f"dp-noise = {config.dp_noise:g} is not allowed with "
    if not config.update_bound or config.update_bound_kind != "fixed":
        raise ConfigError(
            f"{said}update-bound = {config.update_bound:g} and update-bound-kind = "
            f"'{config.update_bound_kind}': it hides updates up to a fixed norm, so update-bound "
            "is above 0 and update-bound-kind is fixed there"
        )
    algorithm = make_algorithm(config.strategy, vars(config))
    if not isinstance(algorithm.accumulator(), MeanOfReplies):
        raise ConfigError(
            f"{said}strategy = '{config.strategy}', whose server needs more of the clients than "
            "the mean of their updates: strategy is fedavg, fedprox or fedadam there, for example"
        )
    if config.num_clients and config.dp_delta >= 1 / config.num_clients:
        raise ConfigError(
            f"dp-delta = {config.dp_delta:g} is not allowed with num-clients = "
            f"{config.num_clients}: dp-delta is below 1 / num-clients, because a mechanism that "
            "publishes all of a client with that probability would do otherwise"
        )
    refuse(
        config,
        said,
        {
            "interference-every": (
                config.interference_every > 0,
                "it publishes what single updates do",
            ),
            "task-figures": (config.task_figures, "it publishes figures of single updates"),
            "adacomm-rounds": (
                config.adacomm_rounds > 0,
                "the local steps would follow the clients' losses, which get no noise",
            ),
            "min-clients-ok": (
                config.min_clients_ok > 1,
                "whether a round counts would depend on who answers; min-clients-ok is 1",
            ),
            "mask-scope": (
                config.mask_rule != "none" and config.mask_scope == "client",
                "which weights a client trains says what its data are, and gets no noise",
            ),
            "head-refresh-clients": (
                config.head_refresh > 0 and config.head_refresh_clients == "sampled",
                "a round may have no client; head-refresh-clients is all",
            ),
        },
    )


def _check_secure(config: Keys) -> None:
    """Refuse what needs more of single clients than their share in a sum."""
    if not config.secure_aggregation:
        return
    algorithm = make_algorithm(config.strategy, vars(config))
    more = not isinstance(algorithm.accumulator(), MeanOfReplies) or bool(algorithm.sends)
    rule = None if config.mask_rule == "none" else rule_named(config.mask_rule)
    refuse(
        config,
        "secure-aggregation = true is not allowed with ",
        {
            "strategy": (
                more or algorithm.mirrored,
                f"{_MORE if more else _MIRRORED}; strategy is fedavg there",
            ),
            "head": (
                config.head == "probe",
                "only head = 'ridge' is made from a sum, and head = 'random' from nothing",
            ),
            "mask-rule": (
                rule is not None and rule.statistic is not None,
                "it needs more of the clients than the sum of their scores",
            ),
            "mask-scope": (
                rule is not None and config.mask_scope not in ("global", "server"),
                "it takes masks of single clients; mask-scope is global or server there",
            ),
            "superclient-clients": (
                config.superclient_clients > 1,
                "in a chain, each client sees the model of the one before",
            ),
            "personal-ridge": (
                config.personal_ridge > 0,
                "its heads are made from the sums of single clients",
            ),
            "update-bound": (
                config.update_bound > 0,
                "the server cannot measure single updates; update-bound is 0 there",
            ),
            "dp-noise": (
                config.dp_noise > 0,
                "the server cannot bound single updates, which noise has to hide",
            ),
            "noise-scale-rounds": (
                config.noise_scale_rounds > 0,
                "it is estimated from single updates",
            ),
            "interference-every": (config.interference_every > 0, "it measures single updates"),
            "task-figures": (config.task_figures, "they show single updates"),
        },
    )
