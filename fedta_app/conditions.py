"""When keys of the configuration are read, as conditions on its other keys."""

from fedta_app.algorithms import algorithms, reads
from fedta_app.data.folder import FOLDER
from fedta_app.entry import Condition, key_is
from fedta_app.masks import needs_scores

FEDERATED = Condition("engine is not centralized", lambda c: c.engine != "centralized")
MASKED = Condition("mask-rule is not none", lambda c: c.mask_rule != "none")
SCORED = Condition(
    "mask-rule ranks by scores", lambda c: c.mask_rule != "none" and needs_scores(c.mask_rule)
)
# Clients whose masks are combined are drawn even where the masks need no scores.
SOME_CALIBRATE = FEDERATED & Condition(
    "mask-rule ranks by scores (or mask-scope is vote, union or intersection)",
    lambda c: (
        SCORED.holds(c) or (MASKED.holds(c) and c.mask_scope in ("vote", "union", "intersection"))
    ),
)
EVERYBODY = FEDERATED & Condition(
    "some phase needs every client: head is ridge, mask-scope is client, superclients, or "
    "calibration-fraction is 1",
    lambda c: (
        c.head == "ridge"
        or c.superclient_clients > 1
        or (MASKED.holds(c) and c.mask_scope == "client")
        or (SCORED.holds(c) and c.mask_scope == "global" and c.calibration_fraction == 1)
    ),
)
REFRESHED = FEDERATED & Condition("head-refresh is above 0", lambda c: c.head_refresh > 0)
ADACOMM = FEDERATED & Condition("adacomm-rounds is above 0", lambda c: c.adacomm_rounds > 0)
NOISE_SCALE = FEDERATED & Condition(
    "noise-scale-rounds is above 0", lambda c: c.noise_scale_rounds > 0
)
SHARED = FEDERATED & Condition("shared-fraction is above 0", lambda c: c.shared_fraction > 0)
BOUNDED = FEDERATED & Condition("update-bound is above 0", lambda c: c.update_bound > 0)
PRIVATE = FEDERATED & Condition("dp-noise is above 0", lambda c: c.dp_noise > 0)
SECURE = FEDERATED & key_is("secure-aggregation", True)
ATTACKED = FEDERATED & Condition("attackers is above 0", lambda c: c.attackers > 0)
PERSONAL = FEDERATED & Condition(
    "personal-layers is not none", lambda c: c.personal_layers != "none"
)
RIDGE, PROBE = key_is("head", "ridge"), key_is("head", "probe")
SOME_BLOCKS = Condition("trained-blocks is above 0", lambda c: c.trained_blocks > 0)
CACHED = SOME_BLOCKS | key_is("dataset", FOLDER)
STEP = key_is("lr-schedule", "step")


def strategy_reads(field: str) -> Condition:
    """Return the condition that the algorithm of the configuration has a field of this name."""
    readers = [name for name in algorithms() if field in reads(name)]
    return FEDERATED & key_is("strategy", *readers)
