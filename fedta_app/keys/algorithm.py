"""The algorithm, and defences and attacks around it."""

from dataclasses import dataclass

from fedta_app.algorithms import algorithms
from fedta_app.conditions import (
    ATTACKED,
    BOUNDED,
    FEDERATED,
    PERSONAL,
    PRIVATE,
    SECURE,
    strategy_reads,
)
from fedta_app.entry import (
    BELOW_ONE,
    INNER_SHARE,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    Range,
    choice,
    flag,
    number,
    or_zero,
    text,
    whole,
)

# fedta_app.training.attacks: on updates, on the ridge head, on the mask.
ON_UPDATES, ON_HEAD = ("sign-flip", "scale", "reverse", "same-value"), ("head-labels", "head-scale")
ON_MASK = ("scores",)


# fmt: off
@dataclass(frozen=True)
class AlgorithmKeys:
    """The algorithm, and defences and attacks around it."""

    strategy: str = choice("fedavg", algorithms(), "result time",
        "the algorithm: docs/algorithms.md", read_when=FEDERATED,
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
    personal_lr: float = number(0.01, NOT_NEGATIVE, "result time",
        "alpha of per-fedavg, of the step that makes the model a client's own; 0: FedAvg",
        read_when=strategy_reads("personal_lr"), synonyms="inner-lr")
    personal_layers: str = text("none",
        "none, or of head, norm and names of weights with *, separated by commas", "result time",
        "what stays with each client: head (FedPer, FedRep), norm (FedBN), names with *; none",
        check=lambda value: all(map(str.strip, value.split(","))),
        read_when=FEDERATED, synonyms="personal fedper fedrep fedbn")
    personal_steps: int = whole(0, 0, "result time",
        "FedRep: steps of personal-layers alone, before local-steps of the rest; 0: both at once",
        read_when=PERSONAL, synonyms="head-steps")
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
    update_bound: float = number(0.0, or_zero("a number", "for no bound"), "result",
        "longest update of a client: longer ones are shortened to it; 0: none",
        read_when=FEDERATED)
    update_bound_kind: str = choice("median", ("median", "fixed"), "result",
        "median: update-bound times the round's median norm; fixed: update-bound itself",
        read_when=BOUNDED)
    dp_noise: float = number(0.0, or_zero("a number", "for no noise"), "result",
        "DP: deviation of the noise on the sum of updates, in update-bounds; 0: none",
        read_when=FEDERATED, synonyms="noise-multiplier dp")
    dp_sampling: str = choice("poisson", ("poisson", "fixed"), "result",
        "DP: each client is sampled on its own, or a fixed number of them is",
        read_when=PRIVATE)
    dp_delta: float = number(1e-5, INNER_SHARE, "result",
        "DP: delta at which metrics.csv has epsilon; below 1 / num-clients",
        read_when=PRIVATE)
    secure_aggregation: bool = flag(False, "result time",
        "simulate secure aggregation: the server sees sums of clients, masked one by one",
        read_when=FEDERATED, synonyms="secagg secure-agg")
    secure_range: float = number(1.0, POSITIVE, "result",
        "largest entry of an update in a secure sum; what is larger is cut to it",
        read_when=SECURE)
    secure_threshold: float = number(0.67,
        Range("a share above 0.5, at most 1", lambda v: 0.5 < v <= 1), "result",
        "share of a secure sum's clients that must answer, or it cannot be opened",
        read_when=SECURE)
    attackers: float = number(0.0, Range("a share from 0 to below 0.5", lambda v: 0 <= v < 0.5),
        "result", "share of clients that are hostile, to evaluate defences; 0: none",
        read_when=FEDERATED)
    attack: str = choice("sign-flip", (*ON_UPDATES, *ON_HEAD, *ON_MASK), "result",
        "what they send: an update, sums for the head (head-labels, head-scale) or scores",
        read_when=ATTACKED)
