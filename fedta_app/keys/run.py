"""Measurements, records, and where and how a run computes."""

import re
from dataclasses import dataclass

from fedta_app.conditions import CACHED, FEDERATED
from fedta_app.entry import POSITIVE, choice, flag, number, or_zero, text, whole


# fmt: off
@dataclass(frozen=True)
class RunKeys:
    """Measurements, records, and where and how a run computes."""

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
    compile: str = choice("auto", ("auto", "off", "cuda-graph", "inductor"), "rounding step",
        "of steps: off, cuda-graph (same bits), inductor (other bits); auto: cuda-graph on CUDA")
    deterministic: bool = flag(True, "rounding",
        "on CUDA, only algorithms that repeat their bits; false: any")
    threads: int = whole(0, 0, "rounding", "torch's threads in a process; 0: torch decides",
        high=1024)
    kernels: str = choice("auto", ("auto", "onednn", "torch"), "rounding build",
        "of linear layers on a CPU: torch, onednn; auto: onednn on AMD CPUs")
    transport: str = choice("auto", ("auto", "memory", "shared", "wire"), "place",
        "of vectors: memory (in-process), shared (one machine) or wire", read_when=FEDERATED)
    nodes_file: str = text("", "the path of a file, or nothing", "place",
        "TOML, node-id = partition-id: who may stand for what; empty: any",
        read_when=FEDERATED, check=lambda value: True)
    clients_per_node: int = whole(0, 0, "place",
        "clients that a Flower node stands for; 0: one, or more for large K", read_when=FEDERATED)
    engine: str = choice("flower", ("flower", "in-process", "centralized"), "place time",
        "set by the runner: flower, in-process or centralized")
