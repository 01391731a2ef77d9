"""Keys that are fine alone and contradict each other."""

import math

from fedta_app.algorithms import make_algorithm, works_in_sequence
from fedta_app.data.sets import DATASETS
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.masks import rule_named


def check_combinations(config: Keys) -> None:
    """Raise ConfigError when keys that are fine alone contradict each other."""
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
    _check_round(config)
    _check_superclients(config)
    _check_masks(config)
    _check_partition(config)
    _check_strategy(config)


def _check_strategy(config: Keys) -> None:
    """Refuse values that the algorithm cannot use, and masks for which it is not defined."""
    if config.engine == "centralized":
        return
    algorithm = make_algorithm(config.strategy, vars(config))  # it refuses values by itself
    if not algorithm.own_masks and config.mask_rule != "none" and config.mask_scope == "client":
        raise ConfigError(
            f"mask-scope = 'client' is not allowed with strategy = '{config.strategy}': it "
            "compares all entries of the updates, which takes one mask for all clients"
        )


def _check_round(config: Keys) -> None:
    """Refuse a round that needs more good replies than it asks for."""
    if config.engine == "centralized" or not config.num_clients:
        return
    in_chain = max(1, config.superclient_clients)
    chains = max(1, round(config.fraction_train * math.ceil(config.num_clients / in_chain)))
    asked = min(config.num_clients, chains * in_chain)
    if config.min_clients_ok > asked:
        raise ConfigError(
            f"min-clients-ok = {config.min_clients_ok} is not allowed with num-clients = "
            f"{config.num_clients} and fraction-train = {config.fraction_train:g}: a round asks "
            f"{asked} of them, so min-clients-ok is at most that"
        )


def _check_superclients(config: Keys) -> None:
    """Refuse chains of clients where each client's update from the round's weights is needed."""
    if config.superclient_clients < 2:
        return
    refused = ""
    if not works_in_sequence(config.strategy):
        refused = f"strategy = '{config.strategy}'"
    elif config.task_figures:
        refused = "task-figures = true"
    elif config.interference_every:
        refused = f"interference-every = {config.interference_every}"
    if refused:
        raise ConfigError(
            f"superclient-clients = {config.superclient_clients} is not allowed with {refused}, "
            "which takes every client's update from the weights of the round: "
            "superclient-clients is 0 or 1 there"
        )


def _check_masks(config: Keys) -> None:
    """Refuse masks without a frozen head, and thresholds that no single ranking could meet."""
    if config.mask_rule != "none" and config.head == "random":
        raise ConfigError(
            f"mask-rule = '{config.mask_rule}' is not allowed with head = 'random': a mask covers "
            "the backbone, under a head that is made first and then frozen; head is ridge or probe"
        )
    if config.engine == "centralized" and config.head == "probe":
        raise ConfigError(
            "head = 'probe' is not allowed with engine = 'centralized': head is random or ridge"
        )
    central = config.engine == "centralized"
    if central and config.optimizer != "sgd" and config.mask_rule != "none":
        raise ConfigError(
            f"optimizer = '{config.optimizer}' is not allowed with mask-rule = "
            f"'{config.mask_rule}': it would move frozen weights; optimizer is sgd there"
        )
    if config.head_refresh and config.head != "ridge":
        raise ConfigError(
            f"head-refresh = {config.head_refresh} is not allowed with head = '{config.head}': "
            "only head = 'ridge' is solved, and can be solved again"
        )
    rule = None if config.mask_rule == "none" else rule_named(config.mask_rule)
    if config.score_threshold and (
        rule is None
        or not rule.takes_threshold
        or config.calibration_rounds != 1
        or config.sparsity_scope != "global"
    ):
        raise ConfigError(
            f"score-threshold = {config.score_threshold:g} is not allowed here: it needs "
            "calibration-rounds = 1, sparsity-scope = 'global' and a rule that ranks by "
            "sensitivity or magnitude"
        )
    alone = config.mask_scope != "global" or config.engine == "centralized"
    if rule is not None and rule.statistic is not None and alone:
        raise ConfigError(
            f"mask-rule = '{rule.name}' is not allowed with mask-scope = '{config.mask_scope}' and "
            f"engine = '{config.engine}': it compares clients, which takes mask-scope = 'global' "
            "in a federation"
        )
    if rule is not None and rule.against_others is not None:
        _check_against_others(config)
    if config.mask_scope == "vote" and (config.score_threshold or config.sparsity_scope == "layer"):
        raise ConfigError(
            "mask-scope = 'vote' is not allowed with score-threshold or sparsity-scope = 'layer': "
            "votes fill the share that sparsity leaves, over all weights together"
        )


def _check_against_others(config: Keys) -> None:
    """Refuse what does not fit a rule by which each client has a mask of its own in one round."""
    if config.engine == "centralized" or config.mask_scope != "client":
        raise ConfigError(
            f"mask-rule = '{config.mask_rule}' is not allowed with mask-scope = "
            f"'{config.mask_scope}' and engine = '{config.engine}': it compares a client with all "
            "others, which takes mask-scope = 'client' in a federation"
        )
    if config.calibration_rounds != 1:
        raise ConfigError(
            f"calibration-rounds = {config.calibration_rounds} is not allowed with mask-rule = "
            f"'{config.mask_rule}', which finds its masks in one round: calibration-rounds is 1"
        )


def _check_partition(config: Keys) -> None:
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
