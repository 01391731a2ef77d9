"""The configuration of a run: every key, its default, what it may be, and one sentence if it isn't.

Keys are flat and hyphenated (`[tool.flwr.app.config]` in pyproject.toml, `--run-config`, presets);
fields carry the same names with underscores. `RunConfig.from_mapping` reads them once; from there
on the code passes plain keyword arguments.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from fedta_app.data.sets import DATASETS
from fedta_app.errors import ConfigError
from fedta_app.masks import MASK_RULES, rule_named

Value = bool | int | float | str
Allowed = Callable[[Any], bool]

# Keys that steer where and how long a run works, not what it computes: a resumed run may differ.
VOLATILE_KEYS = frozenset(
    [
        "checkpoint-every", "clients-per-node", "data-dir", "engine", "max-minutes", "results-dir",
        "resume", "transport",
    ]
)  # fmt: skip

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*(/[A-Za-z0-9][A-Za-z0-9._+=-]*)*")


def _key(default: Value, allowed: str, check: Allowed) -> Any:
    return field(default=default, metadata={"allowed": allowed, "check": check})


def _choice(default: str, *options: str) -> Any:
    return _key(default, "one of " + ", ".join(options), lambda value: value in options)


def _text(default: str, allowed: str) -> Any:
    return _key(default, allowed, lambda value: bool(value.strip()))


def _flag(default: bool) -> Any:
    return _key(default, "true or false", lambda value: True)


def _integer(default: int, low: int, high: int = 2**63 - 1) -> Any:
    allowed = f"a whole number of at least {low}"
    if high < 2**63 - 1:
        allowed = f"a whole number from {low} to {high}"
    return _key(default, allowed, lambda value: low <= value <= high)


def _number(default: float, allowed: str, check: Allowed) -> Any:
    return _key(default, allowed, lambda value: math.isfinite(value) and check(value))


@dataclass(frozen=True)
class RunConfig:
    """One run, resolved; every field is a key of `[tool.flwr.app.config]` with `_` for `-`."""

    name: str = _key(
        "run",
        "letters, digits and . _ + = - in one or more parts separated by /",
        lambda value: bool(_NAME.fullmatch(value)) and ".." not in value,
    )
    seed: int = _integer(0, 0)
    dataset: str = _choice("digits", *DATASETS)
    data_dir: str = _text("~/fedta/data", "a folder")
    model: str = _text("vit_digits", "vit_digits, vit_cifar, cnn, resnet_gn or a timm model name")
    weights: str = _text("pretrained", "pretrained, random, or the path of a weights file")
    image_size: int = _integer(0, 0, 1024)
    augment: bool = _flag(True)
    partition: str = _choice("dirichlet", "iid", "classes", "dirichlet")
    num_clients: int = _integer(0, 0, 1_000_000)
    num_classes_per_client: int = _integer(2, 1)
    dirichlet_alpha: float = _number(0.5, "a number above 0", lambda value: value > 0)
    val_size: float = _number(0.1, "a share above 0 and below 1", lambda value: 0 < value < 1)
    fraction_train: float = _number(0.1, "a share above 0, at most 1", lambda v: 0 < v <= 1)
    local_steps: int = _integer(4, 0)
    num_server_rounds: int = _integer(30, 1)
    batch_size: int = _integer(16, 1)
    lr: float = _number(0.02, "a number above 0", lambda value: value > 0)
    lr_schedule: str = _choice("constant", "constant", "step", "cosine", "warmup-cosine")
    warmup_rounds: int = _integer(0, 0)
    lr_step_rounds: int = _integer(10, 1)
    lr_step_factor: float = _number(0.1, "a number above 0, at most 1", lambda v: 0 < v <= 1)
    momentum: float = _number(0.9, "a number from 0 to below 1", lambda v: 0 <= v < 1)
    weight_decay: float = _number(0.0, "a number of at least 0", lambda value: value >= 0)
    clip_norm: float = _number(0.0, "a norm above 0, or 0 for no clipping", lambda v: v >= 0)
    precision: str = _choice("fp32", "auto", "fp32", "tf32", "bf16", "fp16")
    head: str = _choice("random", "random", "ridge", "probe")
    head_fraction: float = _number(1.0, "a share above 0, at most 1", lambda v: 0 < v <= 1)
    ridge: float = _number(0.0, "a strength above 0, or 0 to choose it", lambda v: v >= 0)
    head_temperature: float = _number(
        0.0, "a temperature above 0, or 0 to fit it", lambda value: value >= 0
    )
    probe_rounds: int = _integer(20, 1)
    probe_lr: float = _number(0.1, "a number above 0", lambda value: value > 0)
    mask_rule: str = _choice("none", "none", *MASK_RULES)
    mask_scope: str = _choice(
        "global", "global", "client", "vote", "union", "intersection", "server"
    )
    sparsity: float = _number(0.9, "a share from 0 to below 1", lambda v: 0 <= v < 1)
    sparsity_scope: str = _choice("global", "global", "layer")
    score_threshold: float = _number(
        0.0, "a score above 0, or 0 to go by sparsity", lambda value: value >= 0
    )
    calibration_rounds: int = _integer(4, 1)
    calibration_fraction: float = _number(1.0, "a share above 0, at most 1", lambda v: 0 < v <= 1)
    calibration_examples: int = _integer(0, 0)
    calibration_batch_size: int = _integer(32, 1)
    soft_value: float = _number(0.1, "a factor from 0 to 1", lambda v: 0 <= v <= 1)
    sensitivity_labels: str = _choice("sampled", "sampled", "true")
    sensitivity_output: str = _choice("log_prob", "log_prob", "logit")
    strategy: str = _choice("fedavg", "fedavg", "masked-fedavg", "ties", "task-arithmetic")
    coverage_exponent: float = _number(1.0, "a number from 0 to 1", lambda v: 0 <= v <= 1)
    server_scale: float = _number(1.0, "a number above 0", lambda value: value > 0)
    task_figures: bool = _flag(False)
    eval_every: int = _integer(5, 1)
    eval_size: int = _integer(0, 0)
    eval_batch_size: int = _integer(500, 1)
    measure_test: str = _choice("always", "always", "end", "never")
    checkpoint_every: int = _integer(1, 1)
    resume: bool = _flag(True)
    results_dir: str = _text("~/fedta/runs", "a folder")
    max_minutes: float = _number(0.0, "minutes above 0, or 0 for no limit", lambda v: v >= 0)
    device: str = _key(
        "auto",
        "auto, cpu, cuda or cuda:N",
        lambda value: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value)),
    )
    compile: str = _choice("off", "off", "cuda-graph", "inductor")
    deterministic: bool = _flag(True)
    threads: int = _integer(0, 0, 1024)
    kernels: str = _choice("auto", "auto", "onednn", "torch")
    transport: str = _choice("auto", "auto", "memory", "shared", "wire")
    clients_per_node: int = _integer(0, 0)
    engine: str = _choice("flower", "flower", "in-process", "centralized")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "RunConfig":
        """Read hyphenated keys, check each, then their combinations.

        Raises
        ------
        ConfigError
            For an unknown key, a value of the wrong type or out of range, or keys that contradict
            each other; missing keys take their default.
        """
        unknown = [key for key in mapping if key not in KEYS]
        if unknown:
            raise ConfigError(_unknown_key_sentence(unknown[0]))
        given: dict[str, Any] = {
            key.replace("-", "_"): _checked(key, value) for key, value in sorted(mapping.items())
        }
        config = cls(**given)
        check_combinations(config)
        return config

    def to_mapping(self) -> dict[str, Value]:
        """Return every key, hyphenated, with its resolved value."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}

    def with_values(self, **values: Value) -> "RunConfig":
        """Return a copy with some fields replaced, checked again."""
        changed = {name.replace("_", "-"): value for name, value in values.items()}
        return RunConfig.from_mapping({**self.to_mapping(), **changed})


KEYS: dict[str, Any] = {entry.name.replace("_", "-"): entry for entry in fields(RunConfig)}


def _unknown_key_sentence(key: str) -> str:
    near = difflib.get_close_matches(key.replace("_", "-"), KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else "allowed are: " + ", ".join(KEYS)
    return f"{key} is not a key of the run configuration; {hint}"


def _checked(key: str, value: Any) -> Value:
    """Return the value in its field's type, or raise the sentence that says what is allowed."""
    entry = KEYS[key]
    kind = entry.type
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right_type = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not right_type or not entry.metadata["check"](value):
        raise ConfigError(f"{key} = {value!r} is not allowed: {key} is {entry.metadata['allowed']}")
    checked: Value = value
    return checked


def check_combinations(config: RunConfig) -> None:
    """Raise ConfigError when keys that are fine alone contradict each other."""
    if config.lr_schedule == "warmup-cosine" and not config.warmup_rounds >= 1:
        raise ConfigError(
            f"warmup-rounds = {config.warmup_rounds} is not allowed with lr-schedule = "
            "'warmup-cosine': warmup-rounds is at least 1 there"
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
    _check_masks(config)
    _check_partition(config)


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
    if config.mask_scope == "vote" and (config.score_threshold or config.sparsity_scope == "layer"):
        raise ConfigError(
            "mask-scope = 'vote' is not allowed with score-threshold or sparsity-scope = 'layer': "
            "votes fill the share that sparsity leaves, over all weights together"
        )


def _check_partition(config: RunConfig) -> None:
    num_classes = DATASETS[config.dataset].classes
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


def read_toml(path: Path) -> dict[str, Any]:
    """Read a flat TOML file of keys; raise ConfigError in one sentence when that fails."""
    try:
        with path.open("rb") as stream:
            mapping = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return mapping


def to_toml(config: RunConfig) -> str:
    """Return every key of the configuration as TOML."""
    return tomli_w.dumps(config.to_mapping())


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line `key: old -> new` for each key that decides a result and changed."""
    keys = sorted((set(old) | set(new)) - VOLATILE_KEYS)
    if "centralized" in (old.get("engine"), new.get("engine")):
        keys.append("engine")  # another place to run is no change; to run without clients is
    return [
        f"{key}: {old.get(key, 'unset')!r} -> {new.get(key, 'unset')!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]
