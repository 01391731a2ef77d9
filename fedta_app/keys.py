"""All keys of the configuration: everything that the code knows about a key is in its one entry.

An entry says the default, what is allowed, what the key decides (words of
`fedta_app.entry.DECIDES`), the reason for the key in one line and, where that is not always, when
it is read. `fedta_app.config` reads, checks and compares configurations by them.
"""

import re
from dataclasses import dataclass

from fedta_app.algorithms import algorithms
from fedta_app.conditions import (
    CACHED,
    FEDERATED,
    MASKED,
    PROBE,
    REFRESHED,
    RIDGE,
    SCORED,
    SHARED,
    SOME_BLOCKS,
    SOME_CALIBRATE,
    STEP,
    strategy_reads,
)
from fedta_app.data.folder import FOLDER
from fedta_app.data.sets import DATASETS
from fedta_app.entry import (
    BELOW_ONE,
    INNER_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    UP_TO_ONE,
    Range,
    choice,
    flag,
    key_is,
    number,
    or_zero,
    text,
    whole,
)
from fedta_app.masks import MASK_RULES
from fedta_app.partition.schemes import MAX_ALPHA, MAX_SPREAD, MIN_ALPHA

ALPHA = Range(
    f"a number from {MIN_ALPHA:g} to {MAX_ALPHA:g}",
    lambda value: MIN_ALPHA <= value <= MAX_ALPHA,
)
SPREAD = Range(f"a number from 0 to {MAX_SPREAD:g}", lambda value: 0 <= value <= MAX_SPREAD)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*(/[A-Za-z0-9][A-Za-z0-9._+=-]*)*")


# fmt: off
@dataclass(frozen=True)
class Keys:
    """The keys, in the order of pyproject.toml; a field has `_` where its key has `-`."""

    name: str = text("run", "letters, digits and . _ + = - in one or more parts separated by /",
        "name", "the run directory is <results-dir>/<name>/seed<seed>",
        check=lambda value: _NAME.fullmatch(value) and ".." not in value)
    seed: int = whole(0, 0, "result start", "every random draw depends on it, and on nothing else",
        synonyms="random-seed")
    dataset: str = choice("digits", (*DATASETS, FOLDER), "result time step build start",
        "digits (no download), cifar100, synthetic (noise), or folder")
    data_dir: str = text("~/fedta/data", "a folder", "place build",
        "absolute, because Flower runs a copy of the app elsewhere")
    image_folder: str = text("images", "the name of a folder in data-dir, or an absolute path",
        "result time step build start",
        "for folder: in data-dir, or absolute; holds train/<class>/*.jpg",
        check=lambda value: value.strip() and not {".", ".."} & set(value.split("/")),
        read_when=key_is("dataset", FOLDER))
    model: str = text("vit_digits", "vit_digits, vit_cifar, cnn, resnet_gn or a timm model name",
        "result time step build start",
        "vit_digits, vit_cifar(_supervised), cnn, resnet_gn, any timm name",
        synonyms="arch architecture network backbone")
    weights: str = text("pretrained", "pretrained, random, or the path of a weights file",
        "result build start", "pretrained, random, or the path of a weights file",
        synonyms="pretrained checkpoint")
    image_size: int = whole(0, 0, "result time step build start",
        "pixels a side that images are resized to; 0: the model's own", high=1024,
        synonyms="img-size resolution input-size")
    trained_blocks: int = whole(0, 0, "result time step build start",
        "last blocks of a transformer that are trained; 0: all weights", high=1000)
    augment: bool = flag(True, "result time",
        "random crops, and flips where the data set allows them")
    cached_views: int = whole(0, 0, "result time",
        "cached augmented views of an image; 0: new ones each step", high=64,
        read_when=SOME_BLOCKS & key_is("augment", True))
    partition: str = choice("dirichlet", ("iid", "classes", "dirichlet"), "result partition",
        "iid, classes (Nc per client) or dirichlet, which fits any K", read_when=FEDERATED)
    num_clients: int = whole(0, 0, "result time partition",
        "K; 0: the number of the federation's nodes, times clients-per-node", high=1_000_000,
        read_when=FEDERATED,
        synonyms="clients k n-clients client-count num-partitions num-supernodes")
    num_classes_per_client: int = whole(2, 1, "result partition",
        "Nc, the classes that each client holds, for partition classes",
        read_when=FEDERATED & key_is("partition", "classes"),
        synonyms="nc classes-per-client")
    dirichlet_alpha: float = number(0.5, ALPHA, "result partition",
        "sum of the concentrations (Hsu et al.); small: few classes a client",
        read_when=FEDERATED & key_is("partition", "dirichlet"), synonyms="alpha concentration")
    size_spread: float = number(0.0, SPREAD, "result time partition",
        "sigma of the lognormal that client sizes follow; 0: equal sizes", read_when=FEDERATED)
    shared_fraction: float = number(0.0, Range("a share from 0 to below 1", BELOW_ONE.check),
        "result partition", "share of the training images that clients share (Zhao et al.)",
        read_when=FEDERATED, synonyms="shared-examples beta")
    shared_portion: float = number(1.0, SHARE, "result partition",
        "share of those images that each client gets", read_when=SHARED)
    val_size: float = number(0.1, INNER_SHARE, "result time build start",
        "share of the training images that is kept for validation",
        synonyms="val-split validation-size val-fraction")
    val_seed: int = whole(-1, -1, "result",
        "seed of that split, which runs of several seeds may share; -1: the run's",
        synonyms="split-seed validation-seed")
    fraction_train: float = number(0.1, SHARE, "result time",
        "C, the share of the clients that train in a round", read_when=FEDERATED,
        synonyms="c fraction-fit participation client-fraction")
    min_clients_ok: int = whole(1, 1, "result",
        "good replies that a round needs; with fewer it is repeated once, with other clients",
        read_when=FEDERATED)
    local_steps: int = whole(4, 0, "result time step",
        "J, mini-batches per client and round; 0: one pass over its images",
        synonyms="j steps epochs local-epochs")
    local_steps_from: int = whole(0, 0, "result time",
        "post-local SGD: rounds of one local step before those of local-steps; 0: none",
        scales_with_rounds=True, read_when=FEDERATED, synonyms="post-local")
    num_server_rounds: int = whole(30, 1, "result count", "rounds of training",
        scales_with_rounds=True, synonyms="rounds num-rounds n-rounds server-rounds global-rounds")
    batch_size: int = whole(16, 1, "result time step", "images in the mini-batch of a local step",
        synonyms="b bs batch")
    lr: float = number(0.02, POSITIVE, "result", "highest learning rate of the clients' SGD",
        synonyms="learning-rate local-lr client-lr eta")
    lr_schedule: str = choice("constant", ("constant", "step", "cosine", "warmup-cosine"), "result",
        "constant, step, cosine or warmup-cosine, over rounds",
        synonyms="schedule scheduler lr-scheduler")
    warmup_rounds: int = whole(0, 0, "result",
        "rounds in which lr rises linearly; 0 but for warmup-cosine", scales_with_rounds=True,
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
    strategy: str = choice("fedavg", algorithms(), "result time",
        "the algorithm, a file of fedta_app/algorithms: docs/algorithms.md", read_when=FEDERATED,
        synonyms="algorithm aggregation aggregator")
    superclient_clients: int = whole(0, 0, "result time",
        "FedSeq: clients in a superclient, trained one after the other; 0, 1: off",
        high=1_000_000, read_when=FEDERATED, synonyms="fedseq")
    coverage_exponent: float = number(1.0, UP_TO_ONE, "result",
        "own masks: 1: mean over those who trained a weight; 0: over all",
        read_when=strategy_reads("coverage_exponent"))
    server_scale: float = number(1.0, POSITIVE, "result",
        "task-arithmetic: factor on the sum of the clients' task vectors",
        read_when=strategy_reads("server_scale"))
    pull: float = number(0.01, NOT_NEGATIVE, "result",
        "to the global weights: mu of fedprox (0: FedAvg), alpha of feddyn, lambda of ditto",
        read_when=strategy_reads("pull"), synonyms="mu proximal-mu prox-mu")
    prior_strength: float = number(1.0, NOT_NEGATIVE, "result",
        "tau of logit-adjustment; 0: that is FedAvg", read_when=strategy_reads("prior_strength"))
    prior_smoothing: float = number(0.1, POSITIVE, "result",
        "what a class without images counts in a client's prior, of a mean class",
        read_when=strategy_reads("prior_smoothing"))
    server_lr: float = number(0.0, or_zero("a number", "for the algorithm's own"), "result",
        "the server's learning rate; 0: 0.001 if it is adaptive, else 1",
        read_when=strategy_reads("server_lr"))
    server_momentum: float = number(0.9, BELOW_ONE, "result",
        "of fedavgm, slowmo and fedlars on the server",
        read_when=strategy_reads("server_momentum"))
    server_beta1: float = number(0.9, BELOW_ONE, "result",
        "memory of the mean update: adaptive ones, fedlamb (fedadagrad's paper: 0)",
        read_when=strategy_reads("server_beta1"))
    server_beta2: float = number(0.99, BELOW_ONE, "result",
        "memory of its square: fedadam, fedyogi, fedlamb", read_when=strategy_reads("server_beta2"))
    server_tau: float = number(0.001, POSITIVE, "result",
        "adaptivity of fedadam, fedyogi, fedadagrad: large is like SGD",
        read_when=strategy_reads("server_tau"))
    server_trust: float = number(0.001, NOT_NEGATIVE, "result",
        "of fedlars, a share of a tensor's length; 0: that is fedavgm",
        read_when=strategy_reads("server_trust"))
    fairness: float = number(1.0, NOT_NEGATIVE, "result time",
        "q of q-ffl: how much more a client with a large loss counts; 0: FedAvg",
        read_when=strategy_reads("fairness"))
    malicious_clients: int = whole(0, 0, "result",
        "f of krum, multikrum and bulyan, of the clients of a round",
        read_when=strategy_reads("malicious_clients"))
    selected_updates: int = whole(0, 0, "result",
        "updates that multikrum averages; 0: all but malicious-clients",
        read_when=strategy_reads("selected_updates"))
    trimmed_share: float = number(0.2, Range("a share from 0 to below 0.5", lambda v: 0 <= v < 0.5),
        "result", "of the updates that fedtrimmedavg cuts off at either end",
        read_when=strategy_reads("trimmed_share"))
    task_figures: bool = flag(False, "result time",
        "at the end: cosines, conflicts, scaling, negation of task vectors", read_when=FEDERATED)
    interference_every: int = whole(0, 0, "result time",
        "rounds between measurements of the updates' interference; 0: none",
        scales_with_rounds=True, read_when=FEDERATED)
    eval_every: int = whole(5, 1, "result count",
        "rounds between measurements; the last round always has one", scales_with_rounds=True)
    eval_size: int = whole(0, 0, "result count start",
        "most validation, and most test images to measure on; 0: all")
    eval_batch_size: int = whole(500, 1, "result time", "images in a batch of a measurement")
    measure_test: str = choice("always", ("always", "end", "never"), "result count",
        "when test images are read: always, end (once, at the end) or never")
    checkpoint_every: int = whole(1, 1, "place count",
        "rounds between checkpoints, which a crash may cost")
    keep_model: str = choice("best-and-last", ("best-and-last", "last", "none"), "place",
        "which named weights the folder model/ keeps; best is by validation")
    resume: bool = flag(True, "place",
        "continue the run in the directory; false: move it aside, begin anew")
    results_dir: str = text("~/fedta/runs", "a folder", "place", "where run directories go",
        synonyms="out output output-dir results log-dir")
    logger: str = choice("none", ("none", "wandb", "trackio"), "place",
        "service that gets the figures too: none, wandb or trackio")
    cache_dir: str = text("~/fedta/cache", "a folder, or nothing for no cache", "place",
        "outputs of frozen blocks, decoded images; empty: in memory", read_when=CACHED,
        check=lambda value: True)
    cache_gb: float = number(20.0, POSITIVE, "place",
        "largest size of that folder in gigabytes; unused entries go first", read_when=CACHED)
    max_minutes: float = number(0.0, or_zero("minutes", "for no limit"), "place",
        "stop, with a checkpoint, before so many minutes; 0: no limit")
    device: str = text("auto", "auto, cpu, cuda or cuda:N", "rounding build",
        "auto: a CUDA GPU if there is one, else the CPU",
        check=re.compile(r"auto|cpu|cuda(:\d+)?").fullmatch, synonyms="gpu cuda")
    compile: str = choice("off", ("off", "cuda-graph", "inductor"), "rounding step",
        "of steps: off, cuda-graph (same bits) or inductor (other bits)")
    deterministic: bool = flag(True, "rounding",
        "on CUDA, only algorithms that repeat their bits; false: any")
    threads: int = whole(0, 0, "rounding", "torch's threads in a process; 0: torch decides",
        high=1024)
    kernels: str = choice("auto", ("auto", "onednn", "torch"), "rounding build",
        "of linear layers on a CPU: torch, onednn; auto: onednn on AMD CPUs")
    transport: str = choice("auto", ("auto", "memory", "shared", "wire"), "place",
        "of vectors: memory (in-process), shared (one machine) or wire", read_when=FEDERATED)
    clients_per_node: int = whole(0, 0, "place",
        "clients that a Flower node stands for; 0: one, or more for large K", read_when=FEDERATED)
    engine: str = choice("flower", ("flower", "in-process", "centralized"), "place time",
        "set by the runner: flower, in-process or centralized")
