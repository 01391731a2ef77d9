"""Data, model, partition and validation split."""

import re
from dataclasses import dataclass

from fedta_app.conditions import FEDERATED, SHARED, SOME_BLOCKS
from fedta_app.data.folder import FOLDER
from fedta_app.data.sets import DATASETS
from fedta_app.entry import (
    BELOW_ONE,
    INNER_SHARE,
    SHARE,
    Range,
    choice,
    flag,
    key_is,
    number,
    text,
    whole,
)
from fedta_app.partition.schemes import MAX_ALPHA, MAX_SPREAD, MIN_ALPHA, NODES, SCHEMES

ALPHA = Range(
    f"a number from {MIN_ALPHA:g} to {MAX_ALPHA:g}",
    lambda value: MIN_ALPHA <= value <= MAX_ALPHA,
)
SPREAD = Range(f"a number from 0 to {MAX_SPREAD:g}", lambda value: 0 <= value <= MAX_SPREAD)
_PART = r"(?!seed)[A-Za-z0-9][A-Za-z0-9._+=-]*"  # seed3 is where a run with that seed lies
_NAME = re.compile(f"{_PART}(/{_PART})*")


# fmt: off
@dataclass(frozen=True)
class DataKeys:
    """Data, model, partition and validation split."""

    name: str = text("run",
        "letters, digits and . _ + = - in parts separated by /, none of which begins with seed",
        "name", "the run directory is <results-dir>/<name>/seed<seed>",
        check=lambda value: _NAME.fullmatch(value) and ".." not in value)
    seed: int = whole(0, 0, "result start",
        "of every random draw (of the validation split only where val-seed is -1)",
        synonyms="random-seed")
    dataset: str = choice("digits", (*DATASETS, FOLDER), "result time step build start",
        "digits (no download), cifar100, shakespeare, synthetic, or folder")
    data_dir: str = text("~/fedta/data", "a folder", "place build",
        "absolute, because Flower runs a copy of the app elsewhere")
    image_folder: str = text("images", "the name of a folder in data-dir, or an absolute path",
        "result time step build start",
        "for folder: in data-dir, or absolute; holds train/<class>/*.jpg",
        check=lambda value: value.strip() and not {".", ".."} & set(value.split("/")),
        read_when=key_is("dataset", FOLDER))
    model: str = text("vit_digits",
        "vit_digits, vit_cifar, vit_cifar_supervised, cnn, resnet_gn, char_lstm or timm's names",
        "result time step build start",
        "vit_digits, vit_cifar(_supervised), cnn, resnet_gn, char_lstm, timm's",
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
    partition: str = choice("dirichlet", (*SCHEMES, NODES), "result partition",
        "iid, classes (Nc each), dirichlet, natural (roles), nodes (each its own)",
        read_when=FEDERATED)
    num_clients: int = whole(0, 0, "result time partition",
        "K; 0: a simulation's nodes, times clients-per-node", high=1_000_000,
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
    val_seed: int = whole(-1, -1, "result start",
        "seed of that split, which runs of several seeds may share; -1: the run's",
        synonyms="split-seed validation-seed")
