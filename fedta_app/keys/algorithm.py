"""The algorithm, and defences and attacks around it."""

from dataclasses import dataclass

from fedta_app.algorithms import algorithms
from fedta_app.conditions import ATTACKED, BOUNDED, FEDERATED, strategy_reads
from fedta_app.entry import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    UP_TO_ONE,
    Range,
    choice,
    number,
    or_zero,
    whole,
)

ATTACKS = ("sign-flip", "scale", "reverse", "same-value")  # fedta_app.training.attacks


# fmt: off
@dataclass(frozen=True)
class AlgorithmKeys:
    """The algorithm, and defences and attacks around it."""

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
    update_bound: float = number(0.0, or_zero("a number", "for no bound"), "result",
        "longest update of a client: longer ones are shortened to it; 0: none",
        read_when=FEDERATED)
    update_bound_kind: str = choice("median", ("median", "fixed"), "result",
        "whether that is a multiple of the round's median norm, or a norm",
        read_when=BOUNDED)
    attackers: float = number(0.0, Range("a share from 0 to below 0.5", lambda v: 0 <= v < 0.5),
        "result", "share of clients that are hostile, to evaluate defences; 0: none",
        read_when=FEDERATED)
    attack: str = choice("sign-flip", ATTACKS, "result",
        "what they send: sign-flip, scale (by 10), reverse (by -100), same-value",
        read_when=ATTACKED)
