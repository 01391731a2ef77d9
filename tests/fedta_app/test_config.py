import math
import random
import runpy
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedta_app.algorithms import algorithms, reads
from fedta_app.conditions import strategy_reads
from fedta_app.config import KEYS, RunConfig, difference, keys_that_decide, to_toml
from fedta_app.entry import ALWAYS, DECIDES, Key, toml_table
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml

ROOT = Path(__file__).resolve().parents[2]

# What is wrong, and the sentence that says so.
BAD = [
    ({"sead": 1}, "sead is not a key of the run configuration; did you mean seed?"),
    ({"local_steps": 4}, "did you mean local-steps?"),
    ({"zzz": 4}, "zzz is not a key of the run configuration; allowed are: name, seed"),
    ({"name": ""}, "name = '' is not allowed: name is letters, digits"),
    ({"name": "../elsewhere"}, "name = '../elsewhere' is not allowed"),
    ({"name": "/tmp/run"}, "name = '/tmp/run' is not allowed"),
    ({"name": "a/seed3"}, "in parts separated by /, none of which begins with seed"),
    ({"name": 3}, "name = 3 is not allowed"),
    ({"seed": -1}, "seed = -1 is not allowed: seed is a whole number of at least 0"),
    ({"seed": 1.5}, "seed = 1.5 is not allowed"),
    ({"seed": True}, "seed = True is not allowed"),
    ({"seed": "0"}, "seed = '0' is not allowed"),
    (
        {"dataset": "cifar10"},
        "dataset = 'cifar10' is not allowed: dataset is one of cifar100, digits",
    ),
    (
        {"dataset": "folder", "image-folder": "../photos"},
        "image-folder = '../photos' is not allowed: image-folder is the name of a folder in",
    ),
    ({"image-folder": " "}, "image-folder = ' ' is not allowed"),
    ({"data-dir": ""}, "data-dir = '' is not allowed: data-dir is a folder"),
    ({"model": " "}, "model = ' ' is not allowed"),
    ({"weights": ""}, "weights = '' is not allowed: weights is pretrained, random, or the path"),
    ({"image-size": -32}, "image-size = -32 is not allowed"),
    ({"image-size": 5000}, "image-size is a whole number from 0 to 1024"),
    ({"augment": 1}, "augment = 1 is not allowed: augment is true or false"),
    ({"augment": "yes"}, "augment = 'yes' is not allowed"),
    ({"partition": "shards"}, "partition is one of iid, classes, dirichlet"),
    ({"num-clients": -1}, "num-clients = -1 is not allowed"),
    ({"num-clients": 10**9}, "num-clients is a whole number from 0 to 1000000"),
    ({"num-classes-per-client": 0}, "num-classes-per-client = 0 is not allowed"),
    ({"dirichlet-alpha": 0}, "dirichlet-alpha = 0 is not allowed: dirichlet-alpha is a number"),
    ({"dirichlet-alpha": float("nan")}, "dirichlet-alpha = nan is not allowed"),
    ({"dirichlet-alpha": float("inf")}, "dirichlet-alpha = inf is not allowed"),
    ({"val-size": 0}, "val-size = 0 is not allowed: val-size is a share above 0 and below 1"),
    ({"val-size": 1}, "val-size = 1 is not allowed"),
    ({"fraction-train": 0}, "fraction-train = 0 is not allowed"),
    ({"fraction-train": 1.1}, "fraction-train = 1.1 is not allowed: fraction-train is a share"),
    ({"local-steps": -4}, "local-steps = -4 is not allowed"),
    ({"local-steps-from": 30}, "local-steps-from is below num-server-rounds"),
    ({"num-server-rounds": 0}, "num-server-rounds = 0 is not allowed"),
    ({"batch-size": 0}, "batch-size = 0 is not allowed: batch-size is a whole number of at least"),
    ({"batch-size": 16.0}, "batch-size = 16.0 is not allowed"),
    ({"lr": 0}, "lr = 0 is not allowed: lr is a number above 0"),
    ({"lr": "0.1"}, "lr = '0.1' is not allowed"),
    ({"lr": True}, "lr = True is not allowed"),
    ({"lr": 10**400}, "(401 characters) is not allowed: lr is finite, a number above 0"),
    ({"lr": float("inf")}, "lr = inf is not allowed: lr is finite, a number above 0"),
    ({"lr": -(10**5000)}, "characters) is not allowed: lr is finite, a number above 0"),
    ({"seed": 2**63}, "is not allowed: seed is below 2^63, a whole number of at least 0"),
    ({"seed": 10**5000}, "is not allowed: seed is below 2^63, a whole number of at least 0"),
    ({"seed": True}, "seed = True is not allowed: seed is a whole number of at least 0"),
    ({"name": "x/" * 500}, "... (1002 characters) is not allowed: name is letters"),
    ({"lr-schedule": "linear"}, "lr-schedule is one of constant, step, cosine, warmup-cosine"),
    ({"lr-schedule": "warmup-cosine"}, "warmup-rounds is at least 2 there"),
    ({"warmup-rounds": 3}, "set lr-schedule = 'warmup-cosine', or warmup-rounds = 0"),
    (
        {"lr-schedule": "warmup-cosine", "warmup-rounds": 30},
        "warmup-rounds is below num-server-rounds",
    ),
    ({"lr-step-rounds": 0}, "lr-step-rounds = 0 is not allowed"),
    ({"lr-step-factor": 2}, "lr-step-factor = 2 is not allowed"),
    ({"momentum": 1}, "momentum = 1 is not allowed: momentum is a number from 0 to below 1"),
    ({"momentum": -0.1}, "momentum = -0.1 is not allowed"),
    ({"weight-decay": -1e-4}, "weight-decay = -0.0001 is not allowed"),
    ({"clip-norm": -1}, "clip-norm = -1 is not allowed: clip-norm is a norm above 0, or 0"),
    ({"precision": "float16"}, "precision is one of auto, fp32, tf32, bf16, fp16"),
    ({"strategy": "average"}, "strategy = 'average' is not allowed: strategy is one of"),
    ({"eval-every": 0}, "eval-every = 0 is not allowed"),
    ({"eval-size": -1}, "eval-size = -1 is not allowed"),
    ({"eval-batch-size": 0}, "eval-batch-size = 0 is not allowed"),
    ({"checkpoint-every": 0}, "checkpoint-every = 0 is not allowed"),
    ({"resume": "true"}, "resume = 'true' is not allowed: resume is true or false"),
    ({"results-dir": ""}, "results-dir = '' is not allowed: results-dir is a folder"),
    ({"max-minutes": -5}, "max-minutes = -5 is not allowed"),
    ({"device": "gpu"}, "device = 'gpu' is not allowed: device is auto, cpu, cuda or cuda:N"),
    ({"device": "cuda:"}, "device = 'cuda:' is not allowed"),
    ({"threads": -1}, "threads = -1 is not allowed"),
    ({"engine": "ray"}, "engine is one of flower, in-process, centralized"),
    (
        {"partition": "classes", "num-classes-per-client": 11},
        "num-classes-per-client = 11 is not allowed with dataset = 'digits': it has 10 classes",
    ),
    (
        {"partition": "classes", "num-classes-per-client": 2, "num-clients": 4},
        "together they hold 8 of the 10 classes",
    ),
    (
        {"engine": "centralized", "optimizer": "lamb", "head": "ridge", "mask-rule": "random"},
        "optimizer = 'lamb' is not allowed with mask-rule = 'random': it would move frozen weights",
    ),
    (
        {"lr-schedule": "step", "lr-step-rounds": 1, "num-server-rounds": 50},
        "lr-step-factor = 0.1 is not allowed with lr-step-rounds = 1 and num-server-rounds = 50",
    ),
    ({"lr": [0.1]}, "lr = [0.1] is not allowed"),
    ({"head": "probe", "head-refresh": 2}, "head-refresh = 2 is not allowed with head = 'probe'"),
]


@pytest.mark.parametrize(("mapping", "sentence"), BAD, ids=[row[1] for row in BAD])
def test_bad_configurations_get_one_sentence(mapping: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig.from_mapping(mapping)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_pyproject_holds_the_table_of_the_entries() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    _, _, table = text.partition("[tool.flwr.app.config]\n")
    assert table == toml_table(KEYS.values()), "python -m fedta_app.config prints what it should be"
    assert tomllib.loads(table) == RunConfig().to_mapping()


def test_the_table_for_the_documentation_names_every_key_and_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["config.py", "--markdown"])
    with pytest.warns(RuntimeWarning, match="sys.modules"):  # it is imported here already
        runpy.run_module("fedta_app.config", run_name="__main__")
    page = capsys.readouterr().out
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [row[0].strip("|` ") for row in rows] == list(KEYS)
    assert {len(row) for row in rows} == {6}
    assert all(f"**{word}**" in page for word in DECIDES)
    assert "`0.02` | a number above 0 | highest learning rate" in page


@pytest.mark.parametrize("key", KEYS.values(), ids=list(KEYS))
def test_an_entry_is_complete(key: Key) -> None:
    assert type(key.default) is key.kind and key.checked(key.default) == key.default
    assert len(key.decides & {"result", "rounding", "name", "place"}) == 1
    assert key.decides <= set(DECIDES)
    assert len(key.reason.split()) >= 3 and "\n" not in key.reason
    for option in key.options:
        assert key.checked(option) == option


def test_the_share_of_clients_says_that_it_is_never_none_of_them() -> None:
    assert "at least one client" in KEYS["fraction-train"].reason


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"num-clients": 100, "fraction-train": 0.1}, 10),
        ({"num-clients": 7, "fraction-train": 0.01}, 1),
        ({"num-clients": 100, "fraction-train": 0.1, "superclient-clients": 5}, 10),
        ({"num-clients": 7, "fraction-train": 1.0, "superclient-clients": 5}, 7),
        # Of three chains, the last is of one client, and two are asked.
        ({"num-clients": 5, "fraction-train": 0.67, "superclient-clients": 2}, 3),
    ],
)
def test_a_round_cannot_need_more_clients_than_it_asks(
    values: dict[str, float], asked: int
) -> None:
    RunConfig.from_mapping({**values, "min-clients-ok": asked})
    with pytest.raises(ConfigError, match=rf"min-clients-ok = {asked + 1} .* asks {asked} of them"):
        RunConfig.from_mapping({**values, "min-clients-ok": asked + 1})


@pytest.mark.parametrize(
    ("values", "added", "said"),
    [
        (
            {"head": "ridge", "head-refresh": 2}, {"task-figures": True},
            "task-figures = true is not allowed with head-refresh = 2: it scales what was learned",
        ),
        (
            {"num-clients": 5, "fraction-train": 0.2}, {"interference-every": 2},
            "asks 1 of them, and it measures what the update of one does to others",
        ),
        (
            {"strategy": "ditto", "noise-scale-rounds": 2, "local-steps": 1}, {"lr-batch-size": 8},
            "with lr-batch-size = 8: the rate would grow with the batch",
        ),
        (
            {"strategy": "q-ffl"}, {"update-bound": 1.0},
            "with strategy = 'q-ffl' and fairness = 1: a client weighs by the loss that it says",
        ),
        ({"head": "probe"}, {"update-bound": 1.0}, "update-bound = 1.0: the probe's training"),
        ({"head": "probe"}, {"strategy": "krum"}, "strategy = 'krum': the probe's training"),
        (
            {"shared-fraction": 0.1, "head": "ridge"}, {"missing-clients": "go-on"},
            "shared-fraction = 0.1 is not allowed with missing-clients = 'go-on': in the sums",
        ),
        (
            {"shared-fraction": 0.1, "head": "probe", "mask-rule": "least-sensitive"},
            {"missing-clients": "go-on", "calibration-fraction": 1},
            "shared-fraction = 0.1 is not allowed with missing-clients = 'go-on': in the sums",
        ),
        ({"adacomm-rounds": 2}, {"update-bound": 1.0}, "update-bound = 1.0: it follows what si"),
        ({"adacomm-rounds": 2}, {"strategy": "fedmedian"}, "'fedmedian': it follows what single"),
        (
            {"noise-scale-rounds": 2, "local-steps": 1}, {"update-bound": 1.0},
            "update-bound = 1.0: it follows what single",
        ),
        (
            {"noise-scale-rounds": 2, "local-steps": 1}, {"strategy": "fedmedian"},
            "'fedmedian': it follows what single",
        ),
    ],
)  # fmt: skip
def test_keys_that_each_work_alone_are_refused_together(
    values: dict[str, Any], added: dict[str, Any], said: str
) -> None:
    RunConfig.from_mapping(values)
    RunConfig.from_mapping(added)
    with pytest.raises(ConfigError, match=said):
        RunConfig.from_mapping({**values, **added})


def test_clients_may_share_images_and_be_missing_where_no_sum_is_over_their_images() -> None:
    shared = {"shared-fraction": 0.1, "missing-clients": "go-on", "head": "probe"}
    shared |= {"mask-rule": "least-sensitive", "calibration-fraction": 1}
    for values in ({"calibration-fraction": 0.5}, {"mask-scope": "client"}, {"mask-rule": "none"}):
        RunConfig.from_mapping({**shared, **values})


@pytest.mark.parametrize("key", [1, None, b"seed", ("seed",), "a\nb"])
def test_keys_that_are_no_words_are_refused_in_one_line(key: Any) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]* is not a key of the run configuration: keys"):
        RunConfig.from_mapping({key: 1})


def some_configurations(number: int) -> list[RunConfig]:
    """Return valid configurations, drawn from the options of the keys that have some."""
    draw, found = random.Random(0), list[RunConfig]()
    while len(found) < number:
        values = {key.name: draw.choice(key.options) for key in KEYS.values() if key.options}
        # Numbers that other keys depend on.
        values |= {"trained-blocks": draw.choice((0, 1)), "head-refresh": draw.choice((0, 1))}
        values |= {"shared-fraction": draw.choice((0.0, 0.1))}
        values |= {"update-bound": draw.choice((0.0, 1.0)), "attackers": draw.choice((0.0, 0.1))}
        values |= {"secure-aggregation": False}
        values |= {"adacomm-rounds": draw.choice((0, 1))}
        if draw.random() < 0.2:  # it needs rounds of one step
            values |= {"noise-scale-rounds": 1, "local-steps": 1}
        values |= {"personal-layers": draw.choice(("none", "none", "norm"))}
        values |= {"dp-noise": draw.choice((0.0, 0.0, 1.0))}
        with suppress(ConfigError):
            found.append(RunConfig.from_mapping(values))
    # What goes with few of the others.
    return [*found, RunConfig(secure_aggregation=True), RunConfig(dp_noise=1.0)]


def test_every_key_is_read_somewhere_and_idle_elsewhere_unless_it_is_always_read() -> None:
    configs = some_configurations(200)
    for key in KEYS.values():
        read = {key.read_when.holds(config) for config in configs}
        assert read == ({True} if key.read_when is ALWAYS else {True, False}), key.name


def test_a_strategy_reads_the_fields_of_its_own_and_no_other() -> None:
    fields = frozenset().union(*map(reads, algorithms()))
    assert {"coverage_exponent", "pull", "server_lr", "server_scale"} <= fields
    for name in algorithms():
        for field in fields:
            read = strategy_reads(field).holds
            assert read(RunConfig(strategy=name)) == (field in reads(name))
            assert not read(RunConfig(strategy=name, engine="centralized"))


def test_every_field_of_an_algorithm_is_a_key_that_is_read_with_it() -> None:
    """A field that is no key would keep its default for ever."""
    for name in algorithms():
        config = RunConfig(strategy=name)
        for field in reads(name):
            key = KEYS[field.replace("_", "-")]
            assert key.read_when.holds(config), f"{name} reads {key.name}"


def test_values_that_decide_are_of_keys_that_are_read() -> None:
    config = RunConfig(partition="iid", num_clients=7)
    assert config.values_that_decide("partition") == {
        "partition": "iid", "num-clients": 7, "size-spread": 0.0, "shared-fraction": 0.0,
    }  # fmt: skip
    assert RunConfig(engine="centralized").values_that_decide("partition") == {}
    assert {"lr", "device"} <= set(config.values_that_decide("result", "rounding"))
    with pytest.raises(ValueError, match="'speed' is nothing that a key decides: result"):
        keys_that_decide("speed")


def test_whole_numbers_are_taken_for_fractional_keys() -> None:
    config = RunConfig.from_mapping({"lr": 1, "clip-norm": 2})
    assert config.lr == 1.0
    assert isinstance(config.lr, float)


def test_toml_round_trip(tmp_path: Path) -> None:
    config = RunConfig.from_mapping({"lr": 0.01, "name": "a/b", "resume": False})
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert RunConfig.from_mapping(read_toml(path)) == config


ANYTHING = st.integers() | st.floats() | st.text() | st.booleans() | st.none()
LIKELY: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(), int: st.integers(0, 20), float: st.floats(0, 1), str: st.text(max_size=8)
}  # fmt: skip


def with_a_value(key: Key) -> st.SearchStrategy[tuple[str, Any]]:
    """Draw a value that the key may well have where others fit it."""
    likely = st.sampled_from(key.options) if key.options else LIKELY[key.kind]
    return st.tuples(st.just(key.name), likely)


ENTRIES = st.sampled_from(list(KEYS.values())).flatmap(with_a_value)
ANY_ENTRIES = st.tuples(st.sampled_from(list(KEYS)) | st.text(max_size=8), ANYTHING)


@given(st.lists(ENTRIES, max_size=4).map(dict) | st.lists(ENTRIES | ANY_ENTRIES).map(dict))
def test_any_mapping_gives_a_configuration_or_a_sentence(mapping: dict[str, Any]) -> None:
    try:
        config = RunConfig.from_mapping(mapping)
    except ConfigError as error:
        assert str(error)
    else:
        assert config.to_mapping().keys() == KEYS.keys()
        assert RunConfig.from_mapping(config.to_mapping()) == config


def test_difference_names_what_decides_a_result_and_nothing_else() -> None:
    old = RunConfig().to_mapping()
    new = RunConfig(lr=0.5, max_minutes=3.0, results_dir="elsewhere", engine="in-process")
    assert difference(old, new.to_mapping()) == ["lr: 0.02 -> 0.5"]
    central = RunConfig(engine="centralized").to_mapping()
    assert difference(old, central) == ["engine: 'flower' -> 'centralized'"]
    assert difference({**old, "gone": 1}, old) == ["gone: 1 -> 'unset'"]
    for key in KEYS:
        changed = difference(old, {**old, key: "another"})
        assert len(changed) == (key not in keys_that_decide("place")), key


NUMBERS = [key for key in KEYS.values() if key.kind in (int, float)]


@pytest.mark.parametrize("key", NUMBERS, ids=[key.name for key in NUMBERS])
@settings(max_examples=20)
@given(
    st.booleans()
    | st.sampled_from([math.nan, math.inf, -math.inf, np.float32("nan"), np.bool_(True), 10**400])
    | st.integers(2**63, 2**70).map(lambda number: -number)
)
def test_what_no_number_can_be_is_refused_for_every_key_by_the_range_that_holds(key, value) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig.from_mapping({key.name: value})
    sentence = str(refusal.value)
    assert sentence.startswith(f"{key.name} = ") and len(sentence) < 250
    assert sentence.endswith(key.allowed)
    huge = isinstance(value, int) and value == 10**400
    if key.kind is float and (huge or isinstance(value, float)):
        assert f"{key.name} is finite, {key.allowed}" in sentence
    if key.kind is int and huge:
        assert f"{key.name} is below 2^63, {key.allowed}" in sentence


def test_no_factor_is_too_large_for_float32() -> None:
    with pytest.raises(ConfigError, match=r"lr = 1e\+39 .*: lr is at most 3.4e\+38 in size, a num"):
        RunConfig.from_mapping({"lr": 1e39})
    assert RunConfig.from_mapping({"lr": 3e38}).lr == 3e38


@pytest.mark.parametrize("key", NUMBERS, ids=[key.name for key in NUMBERS])
def test_numbers_of_numpy_are_pythons(key: Key) -> None:
    kind = np.int64 if key.kind is int else np.float64
    checked = key.checked(kind(key.default))
    assert type(checked) is key.kind and checked == key.default


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning-rate", "lr"),
        ("learning_rate", "lr"),
        ("LR", "lr"),
        ("lrr", "lr"),
        ("rounds", "num-server-rounds"),
        ("num_rounds", "num-server-rounds"),
        ("clients", "num-clients"),
        ("K", "num-clients"),
        ("batch_size", "batch-size"),
        ("batchsize", "batch-size"),
        ("local-epochs", "local-steps"),
        ("alpha", "dirichlet-alpha"),
        ("proximal_mu", "pull"),
        ("sparsty", "sparsity"),
        ("learning-rates", "lr"),
    ],
)
def test_an_unknown_key_suggests_the_one_that_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        RunConfig.from_mapping({typed: 1})
    said = f"{typed} is not a key of the run configuration; did you mean {meant}?"
    assert str(refusal.value) == said


def test_synonyms_are_no_keys_and_mean_one_key_each() -> None:
    words = [word for key in KEYS.values() for word in key.synonyms]
    assert len(set(words)) == len(words) and not set(words) & set(KEYS)
    assert all(word == word.lower() and "_" not in word for word in words)


@pytest.mark.parametrize("text", ["a = ", "[table", b"\xff\xfe", f"lr = {'1' * 5000}"])
def test_a_broken_toml_file_is_refused_by_name(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        read_toml(path)


def test_a_missing_toml_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read"):
        read_toml(tmp_path / "missing.toml")
