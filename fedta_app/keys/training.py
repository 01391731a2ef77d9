"""Local training, head and mask."""

from dataclasses import dataclass

from fedta_app.conditions import (
    ADACOMM,
    EVERYBODY,
    FEDERATED,
    MASKED,
    NOISE_SCALE,
    PROBE,
    REFRESHED,
    RIDGE,
    SCORED,
    SOME_CALIBRATE,
    STEP,
)
from fedta_app.entry import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    UP_TO_ONE,
    Range,
    choice,
    key_is,
    number,
    or_zero,
    whole,
)
from fedta_app.masks import MASK_RULES


# fmt: off
@dataclass(frozen=True)
class TrainingKeys:
    """Local training, head and mask."""

    fraction_train: float = number(0.1, SHARE, "result time",
        "C, the share of the clients that train in a round, rounded to at least one client",
        read_when=FEDERATED,
        synonyms="c fraction-fit participation client-fraction")
    min_clients_ok: int = whole(1, 1, "result",
        "good replies that a round needs; with fewer it is repeated once, with other clients",
        read_when=FEDERATED)
    round_timeout: float = number(3600.0, Range("a number of seconds above 0", POSITIVE.check),
        "place", "seconds to wait for the replies to a round's messages; later ones failed",
        read_when=FEDERATED, synonyms="timeout deadline")
    missing_clients: str = choice("refuse", ("refuse", "go-on"), "result",
        "where a phase needs every client and some are missing: refuse, or go-on without",
        read_when=EVERYBODY)
    local_steps: int = whole(4, 0, "result time step",
        "J, mini-batches per client and round; 0: one pass over its images",
        synonyms="j steps epochs local-epochs")
    local_steps_from: int = whole(0, 0, "result time",
        "post-local SGD: rounds of one local step before those of local-steps; 0: none",
        scales_with_rounds=True, read_when=FEDERATED, synonyms="post-local")
    adacomm_rounds: int = whole(0, 0, "result time",
        "AdaComm: rounds after which local-steps follow the training loss down; 0: never",
        read_when=FEDERATED, synonyms="adacomm adaptive-communication")
    adacomm_factor: float = number(0.5, SHARE, "result time",
        "what local-steps are then multiplied by where the loss did not lower them",
        read_when=ADACOMM)
    num_server_rounds: int = whole(30, 1, "result count", "rounds of training",
        scales_with_rounds=True, synonyms="rounds num-rounds n-rounds server-rounds global-rounds")
    batch_size: int = whole(16, 1, "result time step", "images in the mini-batch of a local step",
        synonyms="b bs batch")
    noise_scale_rounds: int = whole(0, 0, "result time",
        "every so many rounds batch-size becomes the gradient noise scale; 0: never",
        read_when=FEDERATED, synonyms="gradient-noise-scale adaptive-batch-size")
    most_batch_size: int = whole(0, 0, "result time",
        "largest such batch-size; 0: the images of the largest client", read_when=NOISE_SCALE,
        synonyms="max-batch-size")
    lr: float = number(0.02, POSITIVE, "result", "highest learning rate of the clients' SGD",
        synonyms="learning-rate local-lr client-lr eta")
    lr_batch_size: int = whole(0, 0, "result",
        "batch size that lr is for: lr grows in proportion to batch-size; 0: it does not",
        synonyms="linear-scaling base-batch-size")
    lr_schedule: str = choice("constant", ("constant", "step", "cosine", "warmup-cosine"), "result",
        "constant, step, cosine or warmup-cosine, over rounds",
        synonyms="schedule scheduler lr-scheduler")
    warmup_rounds: int = whole(0, 0, "result",
        "rounds in which lr rises linearly; 0 for other schedules than warmup-cosine",
        scales_with_rounds=True,
        fewest_rounds=2, synonyms="warmup warm-up warmup-epochs")
    lr_step_rounds: int = whole(10, 1, "result",
        "rounds from one step to the next, for lr-schedule step", scales_with_rounds=True,
        read_when=STEP, synonyms="step-size")
    lr_step_factor: float = number(0.1, SHARE, "result",
        "what such a step multiplies the learning rate by", read_when=STEP,
        synonyms="gamma lr-decay")
    momentum: float = number(0.9, BELOW_ONE, "result time",
        "of the clients' SGD; it starts at zero in each round")
    weight_decay: float = number(0.0, NOT_NEGATIVE, "result time",
        "L2 penalty, added to the gradient as in torch.optim.SGD", synonyms="wd l2")
    optimizer: str = choice("sgd", ("sgd", "lars", "lamb"), "result time step",
        "of the run without clients: sgd (with momentum), lars or lamb",
        read_when=key_is("engine", "centralized"), synonyms="optim opt")
    clip_norm: float = number(0.0, or_zero("a norm", "for no clipping"), "result time",
        "largest norm of a step's gradient; 0: no clipping",
        synonyms="grad-clip max-grad-norm gradient-clipping")
    precision: str = choice("fp32", ("auto", "fp32", "tf32", "bf16", "fp16"),
        "result time step build start",
        "of forward passes: fp32, tf32, bf16, fp16; auto: by the processor")
    head: str = choice("random", ("random", "ridge", "probe"), "result time",
        "random: trained; ridge or probe: made first, then frozen")
    head_fraction: float = number(1.0, SHARE, "result count start",
        "share of training images for ridge, the same on every partition", read_when=RIDGE)
    ridge: float = number(0.0, or_zero("a strength", "to choose it"), "result start",
        "penalty, relative to the features' variance; 0: by validation", read_when=RIDGE)
    head_temperature: float = number(0.0, or_zero("a temperature", "to fit it"), "result",
        "what the ridge head's logits are divided by; 0: by validation", read_when=RIDGE)
    head_refresh: int = whole(0, 0, "result time",
        "rounds after which the ridge head is solved again; 0: never", read_when=RIDGE)
    head_refresh_clients: str = choice("all", ("all", "sampled"), "result time",
        "whose images the head is then solved from: all, or the round's",
        read_when=REFRESHED)
    personal_ridge: float = number(0.0, or_zero("a weight", "for none"), "result time",
        "at the end, a ridge head for each client: weight of all clients' sums in it; 0: none",
        read_when=FEDERATED & RIDGE)
    probe_rounds: int = whole(20, 1, "result count",
        "rounds of FedAvg on the head alone, for head probe", read_when=PROBE)
    probe_lr: float = number(0.1, POSITIVE, "result", "learning rate of those rounds",
        read_when=PROBE)
    mask_rule: str = choice("none", ("none", *MASK_RULES), "result time",
        "which weights are trained: none (all) or a rule of fedta_app.masks", synonyms="mask rule")
    mask_scope: str = choice("global",
        ("global", "client", "vote", "union", "intersection", "server"), "result time",
        "global (summed scores), client, vote, union, intersection, server",
        read_when=FEDERATED & MASKED)
    sparsity: float = number(0.9, Range("a share from 0 to below 1", BELOW_ONE.check),
        "result count", "share of the backbone's weights that is frozen", read_when=MASKED)
    sparsity_scope: str = choice("global", ("global", "layer"), "result time",
        "rank all weights together (global), or within each layer", read_when=MASKED)
    score_threshold: float = number(0.0, or_zero("a score", "to go by sparsity"), "result time",
        "train by this score, a sum over images; 0: by sparsity", read_when=MASKED)
    calibration_rounds: int = whole(4, 1, "result count", "R, the rounds in which a mask is found",
        read_when=SCORED)
    calibration_fraction: float = number(1.0, SHARE, "result count",
        "share of the clients that score in a calibration round", read_when=SOME_CALIBRATE)
    calibration_examples: int = whole(0, 0, "result count",
        "most images that a client, or the server, scores on; 0: all", read_when=SCORED)
    calibration_batch_size: int = whole(32, 1, "result time",
        "images scored at a time; decides memory and speed, not the mask", read_when=SCORED)
    soft_value: float = number(0.1, Range("a factor from 0 to 1", UP_TO_ONE.check), "result",
        "factor on the weights dropped so far while later rounds score", read_when=SCORED)
    sensitivity_labels: str = choice("sampled", ("sampled", "true"), "result time",
        "labels: sampled from the model (Fisher information), or true", read_when=SCORED)
    sensitivity_output: str = choice("log_prob", ("log_prob", "logit"), "result time",
        "what is differentiated: log_prob, or logit as in TaLoS's code", read_when=SCORED)
