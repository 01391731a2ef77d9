"""The configuration of a run: reading, checking and comparing its keys.

Keys are flat and hyphenated (`[tool.flwr.app.config]` in pyproject.toml, `--run-config`, presets);
fields carry the same names with underscores. `RunConfig.from_mapping` reads them once; from there
on the code passes plain keyword arguments. What the keys are says `fedta_app.keys`.

    python -m fedta_app.config              # the section of pyproject.toml, made from the entries
    python -m fedta_app.config --markdown   # a table of all keys for the documentation
"""

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tomli_w

from fedta_app.algorithms import make_algorithm, works_in_sequence
from fedta_app.data.sets import DATASETS
from fedta_app.entry import DECIDES, Key, Value, markdown_table, toml_table
from fedta_app.errors import ConfigError
from fedta_app.keys import Keys
from fedta_app.masks import rule_named


@dataclass(frozen=True)
class RunConfig(Keys):
    """One run, resolved; every field is a key of `[tool.flwr.app.config]` with `_` for `-`."""

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "RunConfig":
        """Read hyphenated keys, check each, then their combinations.

        Raises
        ------
        ConfigError
            For an unknown key, a value of the wrong type or out of range, or keys that contradict
            each other; missing keys take their default.
        """
        for key in mapping:
            if key not in KEYS:
                raise ConfigError(unknown_key_sentence(key))
        config = cls(
            **{
                name.replace("-", "_"): KEYS[name].checked(value)  # type: ignore[arg-type]
                for name, value in sorted(mapping.items())
            }
        )
        check_combinations(config)
        return config

    def to_mapping(self) -> dict[str, Value]:
        """Return every key, hyphenated, with its resolved value."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}

    def with_values(self, **values: Value) -> "RunConfig":
        """Return a copy with some fields replaced, checked again."""
        changed = {name.replace("_", "-"): value for name, value in values.items()}
        return RunConfig.from_mapping({**self.to_mapping(), **changed})

    def values_that_decide(self, *words: str) -> dict[str, Value]:
        """Return the keys that are read here and decide any of these, with their values.

        Parameters
        ----------
        *words : str
            Words of `fedta_app.entry.DECIDES`.
        """
        deciding = keys_that_decide(*words)
        return {
            key: value
            for key, value in self.to_mapping().items()
            if key in deciding and KEYS[key].read_when.holds(self)
        }


KEYS: dict[str, Key] = {
    name: Key(name, entry.type, entry.default, **entry.metadata)  # type: ignore[arg-type]
    for entry in fields(RunConfig)
    for name in [entry.name.replace("_", "-")]
}


def keys_that_decide(*words: str) -> frozenset[str]:
    """Return the keys that decide any of these words of `fedta_app.entry.DECIDES`."""
    if unknown := set(words) - set(DECIDES):
        raise ValueError(f"{min(unknown)!r} is nothing that a key decides: {', '.join(DECIDES)}")
    return frozenset(name for name, key in KEYS.items() if key.decides & set(words))


def unknown_key_sentence(key: str) -> str:
    """Return the sentence that refuses a key, with the one that was probably meant."""
    meant = {name: key.name for key in KEYS.values() for name in (*key.synonyms, key.name)}
    typed = re.sub(r"[_ .]", "-", key.strip().lower())
    near = [typed] if typed in meant else difflib.get_close_matches(typed, meant, n=1)
    hint = f"did you mean {meant[near[0]]}?" if near else "allowed are: " + ", ".join(KEYS)
    return f"{key} is not a key of the run configuration; {hint}"


def in_keys(sentence: str) -> str:
    """Return the sentence of a library function with keys in place of its arguments."""
    names = "|".join(name.replace("-", "_") for name in KEYS if "-" in name)
    return re.sub(rf"(?<![\w/])({names})(?![\w/])", lambda m: m[1].replace("_", "-"), sentence)


def check_combinations(config: RunConfig) -> None:
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
    _check_superclients(config)
    _check_masks(config)
    _check_partition(config)
    _check_strategy(config)


def _check_strategy(config: RunConfig) -> None:
    """Refuse values that the algorithm cannot use, and masks for which it is not defined."""
    if config.engine == "centralized":
        return
    algorithm = make_algorithm(config.strategy, vars(config))  # it refuses values by itself
    if not algorithm.own_masks and config.mask_rule != "none" and config.mask_scope == "client":
        raise ConfigError(
            f"mask-scope = 'client' is not allowed with strategy = '{config.strategy}': it "
            "compares all entries of the updates, which takes one mask for all clients"
        )


def _check_superclients(config: RunConfig) -> None:
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


def _check_masks(config: RunConfig) -> None:
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


def _check_against_others(config: RunConfig) -> None:
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


def _check_partition(config: RunConfig) -> None:
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


def check_classes(config: RunConfig, num_classes: int) -> None:
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


def without_folders(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values of keys in which a path says what it names, and not where on this machine."""
    kept = dict(values)
    if weights := kept.get("weights"):
        kept["weights"] = Path(str(weights)).name
    if folder := kept.get("image-folder"):  # within data-dir, or anywhere
        path = Path(str(folder))
        elsewhere = path.is_absolute() or path.parts[0].startswith("~")
        kept["image-folder"] = path.name if elsewhere else path.as_posix()
    return kept


def to_toml(config: RunConfig) -> str:
    """Return every key of the configuration as TOML."""
    return tomli_w.dumps(config.to_mapping())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line `key: old -> new` for each key that changed and does not only say where.

    A run may be continued when there is none. Another engine is another place too, but a run with
    clients and one without are two.
    """
    keys = sorted((set(old) | set(new)) - keys_that_decide("place"))
    if "centralized" in (old.get("engine"), new.get("engine")):
        keys.append("engine")
    return [
        f"{key}: {old.get(key, 'unset')!r} -> {new.get(key, 'unset')!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


if __name__ == "__main__":
    make_table = markdown_table if sys.argv[1:] == ["--markdown"] else toml_table
    print(make_table(KEYS.values()), end="")
