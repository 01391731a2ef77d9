"""Masks and heads that contradict each other."""

from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.masks import rule_named


def check_masks(config: Keys) -> None:
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
    if config.num_clients == 1:
        raise ConfigError(
            f"mask-rule = '{config.mask_rule}' is not allowed with num-clients = 1: it compares a "
            "client with all others, and num-clients is at least 2 there"
        )
    if config.calibration_rounds != 1:
        raise ConfigError(
            f"calibration-rounds = {config.calibration_rounds} is not allowed with mask-rule = "
            f"'{config.mask_rule}', which finds its masks in one round: calibration-rounds is 1"
        )
