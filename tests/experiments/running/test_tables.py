"""The tables of the design: complete, comparable, and the same at a smaller scale."""

import fnmatch
import shutil
from pathlib import Path

import pytest
import tomli_w

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.pretraining import saliency
from experiments.reporting.figures import FIGURES
from experiments.reporting.frames import check_comparison
from experiments.reporting.report import kept_tables
from experiments.running import presets
from experiments.running import scales as scale_files
from experiments.running.cells import deciding_keys, identity
from experiments.running.presets import load_table, tables, tuned_paths
from experiments.running.scales import load_scale, scales
from fedta_app.config import RunConfig
from fedta_app.errors import ConfigError
from fedta_app.files import read_toml
from fedta_app.pace.schedule import learning_rate, schedule_warning

RESEARCH = {
    "centralized": 4, "fedavg-iid": 4, "heterogeneity": 15, "sparsity": 24, "mask-rules": 73,
    "methods": 36, "six-models": 6, "aggregation": 12, "communication": 8, "architectures": 12,
    "task-vectors": 15,
}  # fmt: skip
SMALL = {"mask-rules": 51, "heterogeneity": 10}


def configs(table: str, scale: str) -> dict[str, RunConfig]:
    return {preset.name: preset.config({}) for preset in load_table(table, scale).presets}


@pytest.mark.parametrize("scale", ["", "small"])
@pytest.mark.parametrize("table", RESEARCH)
def test_tables_are_complete_and_read_test_images_once(table: str, scale: str) -> None:
    found = configs(table, scale)
    expected = SMALL.get(table, RESEARCH[table]) if scale else RESEARCH[table]
    assert len(found) == expected
    about = load_table(table, scale)
    assert about.seeds >= 3 and about.question
    for name, config in found.items():
        assert config.measure_test == "end", name
        assert config.name == f"{about.label}/{name}"
        untrained = name.startswith("untrained-")
        assert untrained or config.num_server_rounds // config.eval_every >= 5, name
    named = {about.report.get(key) for key in ("lines", "panels")} - {None}
    assert named | set(about.compared) <= set(about.axes)
    check_comparison(about)
    assert set(about.report["figures"]) <= set(FIGURES)
    # No two presets of a table are one experiment under two names.
    assert len({identity(config) for config in found.values()}) == len(found)


@pytest.mark.parametrize("scale", ["", *scales()])
def test_every_cell_of_heterogeneity_takes_as_many_local_steps(scale: str) -> None:
    found = configs("heterogeneity", scale).values()
    assert len({config.num_server_rounds * config.local_steps for config in found}) == 1


@pytest.mark.parametrize("scale", ["", *scales()])
@pytest.mark.parametrize("table", tables())
def test_every_schedule_does_something(table: str, scale: str) -> None:
    assert not any(schedule_warning(config) for config in configs(table, scale).values())


@pytest.mark.parametrize("scale", ["", *scales()])
def test_the_schedules_of_the_centralised_baseline_differ(scale: str) -> None:
    rates = {
        tuple(learning_rate(config, r + 1) for r in range(config.num_server_rounds))
        for config in configs("centralized", scale).values()
    }
    assert len(rates) == 4
    warmup = configs("centralized", scale)["warmup-cosine"]
    assert learning_rate(warmup, 1) < warmup.lr == learning_rate(warmup, warmup.warmup_rounds)


def test_full_scale_is_dino_and_small_says_that_it_is_not() -> None:
    for table in set(RESEARCH) - {"architectures"}:
        models = {config.model for config in configs(table, "").values()}
        assert models == {"vit_small_patch16_224.dino"}
        models = {config.model for config in configs(table, "small").values()}
        assert models == {"vit_small_patch14_dinov2.lvd142m"}
    for name, replaced in (("heterogeneity", True), ("architectures", False)):
        table = load_table(name, "small")
        assert table.scale is not None
        caption = table.scale.caption_of(preset.values for preset in table.presets)
        assert ("not DINO ViT-S/16" in caption) == replaced
    models = {config.model for config in configs("architectures", "small").values()}
    assert models == {"cnn", "resnet_gn", "vit_cifar"}  # an axis is stronger than the scale


def test_what_makes_missing_weights_of_a_scale_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["plan", "heterogeneity", "--scale", "small"]) == ExitStatus.REFUSED
    said = capsys.readouterr().err
    assert "needs the weights" in said and "experiments.pretraining.saliency" in said
    folder = tmp_path / "fedta/weights"
    assert saliency.DEFAULT.expanduser().parent == folder  # what the command writes is what is read
    assert Path(load_scale("small").values["weights"]) == saliency.DEFAULT
    load_scale("small").check_weights(["pretrained", "random"])  # of other presets


@pytest.mark.parametrize("table", RESEARCH)
def test_masked_presets_of_the_small_scale_have_rates_of_their_own(table: str) -> None:
    (path,) = tuned_paths(table, "small")
    sections = read_toml(path) if path.exists() else {}
    patterns = [pattern for pattern, values in sections.items() if "lr" in values]
    for name, config in configs(table, "small").items():
        tuned = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        assert tuned or config.mask_rule == "none", name


def test_tables_share_the_cells_that_are_the_same_experiment() -> None:
    shared = [
        ("heterogeneity", "nc5-j16", "six-models", "nc5-dense"),
        ("heterogeneity", "nc1-j16", "mask-rules", "dense-nc1-frozen"),
        ("heterogeneity", "iid-j4", "fedavg-iid", "c0.1"),
        ("heterogeneity", "iid-j16", "communication", "d100-iid"),
        ("six-models", "nc5-sparse", "mask-rules", "least-nc5-frozen"),
        ("six-models", "central-dense", "mask-rules", "dense-central-frozen"),
    ]
    for scale in ("", "small"):
        for table, name, other_table, other in shared:
            first, second = configs(table, scale)[name], configs(other_table, scale)[other]
            assert deciding_keys(first) == deciding_keys(second), (table, name)


def test_keys_that_nothing_reads_decide_nothing() -> None:
    base = RunConfig.from_mapping({"num-clients": 20, "partition": "iid"})
    assert identity(base.with_values(num_classes_per_client=7, head_fraction=0.5)) == identity(base)
    masked = base.with_values(head="ridge", mask_rule="random")
    assert identity(masked.with_values(sparsity=0.5)) != identity(masked)
    assert identity(masked.with_values(calibration_rounds=9)) == identity(masked)
    several = masked.with_values(mask_scope="union")
    assert identity(several.with_values(calibration_fraction=0.5)) != identity(several)
    central = several.with_values(engine="centralized")
    assert identity(central.with_values(calibration_fraction=0.5)) == identity(central)
    scored = masked.with_values(mask_rule="least-sensitive")
    assert identity(scored.with_values(calibration_rounds=9)) != identity(scored)


def test_a_report_is_of_the_tables_that_have_records(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for label in ("smoke", "six-models-small", "benchmarks"):
        (tmp_path / label / "cells").mkdir(parents=True)
    assert {table.label for table in kept_tables(tmp_path)} == {"smoke", "six-models-small"}
    assert set(RESEARCH) <= set(tables())


@pytest.mark.parametrize("table", RESEARCH)
def test_the_tiny_scale_leaves_out_fifty_classes_and_nothing_else(table: str) -> None:
    """Its digits have ten."""
    left_out = configs(table, "").keys() - configs(table, "tiny").keys()
    assert all("nc50" in name for name in left_out)
    assert {config.dataset for config in configs(table, "tiny").values()} == {"digits"}
    assert all(config.num_server_rounds <= 8 for config in configs(table, "tiny").values())


@pytest.mark.parametrize(
    ("file", "section", "more", "sentence"),
    [
        ("smoke/table.toml", "report", {"margin": 1}, "margin = 1 is not allowed: it is a differ"),
        ("smoke/table.toml", "report", {"margin": "a"}, "margin = 'a' is not allowed"),
        ("smoke/table.toml", "report", {"refrence": "least"}, "did you mean reference?"),
        ("smoke/table.toml", "report", {"lines": "rul"}, "is no axis of it; did you mean rule?"),
        ("smoke/table.toml", "report", {"compare": "rul"}, "compare = 'rul' is no axis of it; did"),
        (
            "smoke/table.toml",
            "report",
            {"compare": ["rule", "x"]},
            "compare = 'x' is no axis of it",
        ),
        ("smoke/table.toml", "report", {"compare": 3}, "compare = 3 is not allowed: it is an axis"),
        ("smoke/table.toml", "report", {"reference": "lest"}, "are compared; did you mean least?"),
        ("smoke/table.toml", "report", {"figures": "loss"}, "figures = 'loss' is not allowed"),
        (
            "smoke/table.toml",
            "report",
            {"lines": ["rule"]},
            "lines = ['rule'] is not allowed: it is",
        ),
        ("smoke/table.toml", "", {"sedes": 1}, "'sedes'; did you mean seeds?"),
        ("smoke/table.toml", "", {"seeds": "3"}, "seeds = '3' is not allowed: it is a whole num"),
        ("smoke/table.toml", "", {"seeds": 0}, "seeds = 0 is not allowed: it is a whole number fr"),
        ("smoke/table.toml", "", {"seeds": 2.5}, "seeds = 2.5 is not allowed"),
        (
            "smoke/table.toml",
            "",
            {"exclude": "a-*"},
            "exclude = 'a-*' is not allowed: it is a list",
        ),
        ("smoke/table.toml", "", {"question": 1}, "question = 1 is not allowed: it is a text"),
        ("smoke/table.toml", "", {"base": 1}, "base = 1 is not allowed: it is a section of keys"),
        (
            "smoke/table.toml",
            "axes",
            {"partition": "iid"},
            "is not allowed: it is sections of sect",
        ),
        (
            "smoke/table.toml",
            "axes",
            {"rule": {"least": 3}},
            "is not allowed: it is sections of se",
        ),
        ("smoke/table.toml", "", {"scales": {"tiny": 1}}, "is not allowed: it is sections of keys"),
        ("smoke/table.toml", "", {"scales": {"tiny": {"rounds": "0.2"}}}, "rounds = '0.2' is not"),
        ("tiny.toml", "", {"rounds": 0}, "rounds = 0 is not allowed: it is a number above 0"),
        ("tiny.toml", "", {"values": 3}, "values = 3 is not allowed: it is a section of keys"),
        ("smoke/table.toml", "", {"scales": {"tiny": {"round": 1}}}, "[scales.tiny] of "),
        ("tiny.toml", "", {"round": 0.5}, "unknown key 'round'; did you mean rounds?"),
    ],
)
def test_what_a_table_cannot_say_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, section: str,
    more: dict[str, object], sentence: str,
) -> None:  # fmt: skip
    (tmp_path / "smoke").mkdir()
    for name in ("smoke/table.toml", "tiny.toml"):
        about = read_toml(presets.FOLDER / name)
        if name == file:
            (about[section] if section else about).update(more)
        (tmp_path / name).write_text(tomli_w.dumps(about))
    for module in (presets, scale_files):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_table("smoke", "tiny")
    assert sentence in str(caught.value)


def test_a_figure_that_nobody_draws_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = read_toml(presets.FOLDER / "smoke/table.toml")
    about["report"]["figures"] = ["curves", "los"]
    (tmp_path / "tables/smoke").mkdir(parents=True)
    (tmp_path / "tables/smoke/table.toml").write_text(tomli_w.dumps(about))
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "tables")
    assert main(["run", "smoke", "--results-dir", str(tmp_path / "runs")]) == ExitStatus.REFUSED
    assert "there is no figure 'los'; did you mean loss?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_preset_of_its_own_beside_axes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smoke").mkdir()
    shutil.copy(presets.FOLDER / "smoke/table.toml", tmp_path / "smoke")
    (tmp_path / "smoke/mine.toml").write_text("lr = 0.1\n")
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"mine.toml is a preset beside table.toml with axes"):
        load_table("smoke")
