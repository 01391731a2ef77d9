"""Records and reports: what is refused, what is compared, and the same bytes every time."""

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.reporting.collect import LastData, portable_command, without_paths
from experiments.reporting.figures import groups
from experiments.reporting.frames import (
    comparisons_frame,
    page_frame,
    presets_frame,
    trajectories_frame,
    verdict,
)
from experiments.reporting.gate import Check, sanity_gate
from experiments.reporting.line_figures import (
    against_bytes,
    curves,
    drift,
    interference,
    losses,
    negated,
    scaled,
)
from experiments.reporting.map_figures import accuracies, mask_density
from experiments.reporting.origin import check_origin
from experiments.reporting.records import RecordError, read_records
from experiments.reporting.report import commands_that_made, write_report
from experiments.running import presets
from experiments.running.presets import Preset, Table, load_table
from experiments.running.timing import Parts
from fedta_app.config import RunConfig, to_toml
from fedta_app.data.loading import DataSplits
from fedta_app.files import read_toml
from fedta_app.runs.metrics import ADDED, COLUMNS, Row, write_csv
from fedta_app.runs.records import read_rows
from fedta_app.training.datasets import load_run_data
from fedta_app.training.workspace import build_workspace

TABLE = load_table("smoke")
# test accuracy of seeds 0 and 1
ACCURACY = {
    "least-iid": (0.90, 0.92), "random-iid": (0.80, 0.82001), "least-nc1": (0.7, 0.9),
    "random-nc1": (0.9, 0.7),
}  # fmt: skip


def write(results: Path, preset: str, seed: int, **changes: Any) -> Path:
    """Write the record of a cell that was never run."""
    folder = results / "smoke/cells" / preset / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    (chosen,) = [entry for entry in TABLE.presets if entry.name == preset]
    values = {"seed": seed, **changes.pop("config", {})}
    (folder / "config.toml").write_text(to_toml(chosen.config(values)))
    accuracy = ACCURACY[preset][seed]
    rows = [
        Row(0, "start", val_accuracy=0.6, bytes_down=1000, bytes_up=3000),
        Row(12, "train", 0.5, accuracy, accuracy, 0.4, bytes_down=1000, bytes_up=1000),
    ]
    write_csv(folder / "metrics.csv", rows)
    summary = {
        "status": "finished", "name": f"smoke/{preset}", "seed": seed,
        "final": {"test_accuracy": accuracy, "val_accuracy": accuracy, "test_loss": 0.4},
        "identity": {"data-sha256": f"d{seed}", "weights-file-sha256": "w"},
        "weights": {"kind": "file"}, "device": "cpu", "bytes-up": 4000, "bytes-down": 2000,
        "final-weights-sha256": f"{preset} {seed}",
        "code": {"sha256": "c", "commit": "0123456789", "changed": False},
        "mask": {"density": 0.1, "trained": 100, "of": 1000}, "frozen-weights-untouched": True,
        "mask-sample": {"entries": 8, "of": 1000}, "sessions": [{"seconds": 60}],
    }  # fmt: skip
    summary.update(changes)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "mask.bits").write_bytes(bytes([0b11000000 if "least" in preset else 0b01100000]))
    if seed == 0:
        (folder / "classes.csv").write_text("3,0\n0,3\n")
    return folder


def write_all(results: Path) -> None:
    for preset in ACCURACY:
        for seed in (0, 1):
            write(results, preset, seed)


def test_images_of_each_class_are_a_table_also_of_one_client(tmp_path: Path) -> None:
    folder = write(tmp_path, "least-iid", 0)
    (folder / "classes.csv").write_text("3,0,4\n")
    (record,) = read_records(TABLE, tmp_path)
    assert record.classes is not None and record.classes.tolist() == [[3, 0, 4]]


def test_the_density_of_a_preset_is_the_mean_of_its_masks(tmp_path: Path) -> None:
    """Masks that are a union, or made by a threshold, differ in it."""
    for seed, density in ((0, 0.1), (1, 0.3)):
        write(tmp_path, "least-iid", seed, mask={"density": density, "trained": 1, "of": 10})
    assert presets_frame(read_records(TABLE, tmp_path))["density"].tolist() == [pytest.approx(0.2)]


def test_a_page_has_means_and_intervals(tmp_path: Path) -> None:
    write_all(tmp_path)
    page = page_frame(TABLE, read_records(TABLE, tmp_path))
    assert list(page.columns) == ["rule", "iid", "nc1"]
    # standard deviation 0.01414, t(0.975; 1) = 12.7062, by sqrt(2)
    assert page.iloc[0].tolist() == ["least", "91.0 ± 12.7", "80.0 ± 127.1"]


def test_methods_are_compared_seed_by_seed(tmp_path: Path) -> None:
    write_all(tmp_path)
    frame = comparisons_frame(TABLE, read_records(TABLE, tmp_path))
    assert frame is not None
    assert frame["partition"].tolist() == ["iid", "nc1"]
    assert frame["difference"].tolist() == pytest.approx([0.099995, 0.0])
    assert frame["verdict"].tolist() == ["differs", "cannot be told"]
    assert frame["family"].tolist() == [1, 1]  # a partition is a setting, a family
    assert not [name for name in frame if "equivalence" in name]  # without a margin


def test_what_happened_on_the_way_is_reported(tmp_path: Path) -> None:
    write_all(tmp_path)
    for seed, dip in ((0, 0.1), (1, 0.3)):
        folder = tmp_path / f"smoke/cells/least-iid/seed{seed}"
        rows = [
            Row(0, "start", val_accuracy=0.6),
            Row(6, "train", 0.5, dip, 0.4),
            Row(9, "train", 0.5),  # was not measured
            Row(12, "train", 0.5, 0.9, 0.4),
        ]
        write_csv(folder / "metrics.csv", rows)
    frame = trajectories_frame(read_records(TABLE, tmp_path)).set_index("preset")
    assert frame.loc["least-iid"].tolist() == [
        "60.0 ± 0.0", "20.0 ± 127.1", "55.0 ± 63.5", "90.0 ± 0.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("differ", "equal", "word"),
    [
        (0.01, 0.9, "differs"),
        (0.01, 0.01, "differs"),
        (0.05, 0.049, "equivalent"),
        (0.5, 0.05, "cannot be told"),
        (math.nan, math.nan, "cannot be told"),
    ],
)
def test_three_words(differ: float, equal: float, word: str) -> None:
    assert verdict(differ, equal) == word


def test_a_margin_makes_equal_pairs_equivalent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACCURACY, "random-nc1", ACCURACY["least-nc1"])
    write_all(tmp_path)
    table = replace(TABLE, report={**TABLE.report, "margin": 0.01})
    frame = comparisons_frame(table, read_records(table, tmp_path))
    # Equal accuracies of two seeds may be chance; equal weights are none.
    assert frame is not None and frame["verdict"].tolist()[1] == "cannot be told"
    for seed in (0, 1):
        write(tmp_path, "random-nc1", seed, **{"final-weights-sha256": f"least-nc1 {seed}"})
    frame = comparisons_frame(table, read_records(table, tmp_path))
    assert frame is not None and frame["verdict"].tolist()[1] == "equivalent"


def test_comparisons_that_are_planned_count_before_they_are_run(tmp_path: Path) -> None:
    write_all(tmp_path)
    other = Preset("smoke", "most-iid", {}, {"rule": "most", "partition": "iid"})
    table = replace(TABLE, presets=[*TABLE.presets, other])
    frame = comparisons_frame(table, read_records(table, tmp_path))
    assert frame is not None and frame["family"].tolist() == [3, 1]  # most with both others
    assert frame["p (Holm)"].tolist() == pytest.approx([3 * frame["p"][0], frame["p"][1]])


@pytest.mark.draws
def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    write_all(tmp_path / "results")
    found = []
    for name in ("a", "b"):
        places = ["--records", str(tmp_path / "results"), "--out", str(tmp_path / name)]
        assert main(["report", *places]) == ExitStatus.FINISHED
        folder = tmp_path / name / "smoke"
        found.append(
            {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        )
    assert found[0] == found[1]
    names = {str(path) for path in found[0]}
    kinds = ("curves", "bytes", "heat-map", "mask-overlap", "classes")
    assert names >= {f"figures/{kind}.{end}" for kind in kinds for end in ("svg", "png")}
    assert names >= {"report.md", "table.tex", "cells.csv", "presets.csv", "comparisons.csv"}
    tex = (tmp_path / "a/smoke/table.tex").read_text()
    assert r"\toprule" in tex and r"91.0 $\pm$ 12.7" in tex and r"95 \%" in tex


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"identity": {"data-sha256": "x", "weights-file-sha256": "w"}}, "different data sets"),
        ({"identity": {"data-sha256": "d1", "weights-file-sha256": "x"}}, "different weights"),
        ({"weights": {"kind": "random"}}, "different weights"),
        (
            {"config": {"lr": 0.5}},
            "smoke/random-nc1 seed 1 ran with lr = 0.5, which is not what its preset says, and",
        ),
        ({"name": "smoke/least-iid"}, "holds the record of smoke/least-iid"),
        ({"config": {"partition": "iid"}}, "ran the same configuration"),
        ({"status": "stopped"}, "is not the record of a finished cell"),
        ({"config": {"seed": 0}}, "seed1 holds the record of another seed"),
        ({"final-weights-sha256": "random-nc1 0"}, "random-nc1 seed 1 end with equal weights"),
        ({"final-weights-sha256": "least-iid 0"}, "random-nc1 seed 1 end with equal weights"),
        ({"mask": None}, "smoke/random-nc1 seed 1 has no mask"),
        ({"frozen-weights-untouched": False}, "frozen weights kept their bits"),
        ({"mask": {"density": 0.2, "trained": 200, "of": 1000}}, "200 of 1000, not 100"),
        ({"mask": {"density": 0.1, "trained": 101, "of": 1000}}, "101 of 1000, not 100"),
        # Halves go to the even number: floats would say that 1 - 0.9 of 15 are 1.
        ({"mask": {"density": 0.1, "trained": 1, "of": 15}}, "1 of 15, not 2"),
    ],
)
def test_a_table_of_mixed_or_impossible_cells_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
) -> None:
    write_all(tmp_path)
    write(tmp_path, "random-nc1", 1, **changes)
    assert main(["report", "smoke", "--records", str(tmp_path)]) == ExitStatus.FAILED
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert sentence in error
    assert not (tmp_path / "smoke/report.md").exists()


def test_attacks_that_a_defence_leaves_out_may_end_at_equal_weights(tmp_path: Path) -> None:
    """A rule that finds all hostile updates does not see how long they are."""
    write_all(tmp_path)
    record, *_ = read_records(TABLE, tmp_path)
    summary = {**record.summary, "final-weights-sha256": "x"}

    def distinct(*configs: RunConfig) -> Check:
        *_, found = sanity_gate([replace(record, config=c, summary=summary) for c in configs])
        return found

    plain = record.config
    hostile = plain.with_values(attackers=0.1, attack="scale")
    longer = hostile.with_values(attack="reverse", name="another")
    assert distinct(hostile, longer).holds
    assert "but for 1 that need not" in distinct(hostile, longer).detail
    assert not distinct(hostile, longer.with_values(seed=9)).holds
    assert not distinct(plain, plain.with_values(attack="reverse")).holds
    assert not distinct(plain, plain.with_values(name="another")).holds


def test_what_clients_keep_for_themselves_changes_no_weight_of_the_server(tmp_path: Path) -> None:
    write_all(tmp_path)
    record, *_ = read_records(TABLE, tmp_path)
    summary = {**record.summary, "final-weights-sha256": "x"}
    values = {"mask_rule": "none", "strategy": "fedavg", "head": "ridge"}
    plain = record.config.with_values(**values)
    ditto = plain.with_values(name="ditto", strategy="ditto", pull=0.5)
    heads = plain.with_values(name="heads", personal_ridge=0.1)
    steps = ditto.with_values(name="steps", local_steps=7)
    for other, said in ((ditto, "clients keep"), (heads, "clients keep"), (steps, "did nothing")):
        records = [replace(record, config=config, summary=summary) for config in (plain, other)]
        *_, found = sanity_gate(records)
        assert found.holds and said in found.detail


def test_what_has_no_effect_is_said_and_does_not_stop_the_table(tmp_path: Path) -> None:
    """A norm that no gradient reaches gives the weights of no clipping."""
    write_all(tmp_path)
    for seed in (0, 1):
        write(tmp_path, "random-nc1", seed, **{"final-weights-sha256": f"least-nc1 {seed}"})
    records = read_records(TABLE, tmp_path)
    *_, found = sanity_gate(records)
    assert found.holds and found.detail.endswith(
        "but smoke/least-nc1 and smoke/random-nc1 end with equal weights: what differs in them "
        "did nothing"
    )
    frame = comparisons_frame(TABLE, records)  # of a table that states no margin
    assert frame is not None and frame["verdict"].tolist() == ["differs", "equivalent"]
    assert main(["report", "smoke", "--records", str(tmp_path)]) == ExitStatus.FINISHED
    page = (tmp_path / "smoke/report.md").read_text()
    assert "only runs of equal weights are *equivalent*" in page and "did nothing)" in page


def test_a_run_that_is_filed_twice_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path)
    for preset in ("least-iid", "random-nc1"):
        write(tmp_path, preset, 0, sessions=[{"id": "a1d996af", "seconds": 60}])
    *_, found = sanity_gate(read_records(TABLE, tmp_path))
    assert not found.holds
    assert found.detail == (
        "smoke/least-iid seed 0 and smoke/random-nc1 seed 0 are records of one run"
    )


@pytest.mark.parametrize("damage", ["", "round,phase\n0,start\n", None])
def test_a_damaged_metrics_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str | None
) -> None:
    write_all(tmp_path)
    path = tmp_path / "smoke/cells/random-nc1/seed1/metrics.csv"
    path.write_text(path.read_text()[:-15] + "x" if damage is None else damage)
    assert main(["report", "smoke", "--records", str(tmp_path)]) == ExitStatus.FAILED
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "seed1 is not the record of a finished cell" in error


def test_one_record_of_another_version_stops_its_table_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path)
    file = tmp_path / "smoke/cells/least-iid/seed0/config.toml"
    file.write_text(file.read_text() + "lrr = 1\n")
    assert main(["report", "--records", str(tmp_path)]) == ExitStatus.FAILED
    assert "did you mean lr?" in capsys.readouterr().err


def test_starts_are_held_against_chance_and_each_other(tmp_path: Path) -> None:
    write_all(tmp_path)
    metrics = tmp_path / "smoke/cells/random-nc1/seed1/metrics.csv"
    metrics.write_text(metrics.read_text().replace("start,,0.6", "start,,0.1"))
    checks = sanity_gate(read_records(TABLE, tmp_path))
    assert [check.holds for check in checks] == [False, False, True, True, True]
    assert "10.0%" in checks[0].detail and "random-nc1 seed 1: 10.00%" in checks[1].detail


@pytest.mark.parametrize(
    ("config", "failed", "other"),
    [
        ({"attackers": 0.1, "attack": "head-labels"}, 0, {}),
        ({"missing-clients": "go-on"}, 2, {}),
        ({"val-seed": 5}, 0, {"identity": {"data-sha256": "x", "weights-file-sha256": "w"}}),
    ],
)
def test_a_start_that_has_a_reason_to_differ_is_not_blamed_on_the_partition(
    tmp_path: Path, config: dict[str, Any], failed: int, other: dict[str, Any]
) -> None:
    write_all(tmp_path)
    folder = write(tmp_path, "random-nc1", 1, config=config, **other)
    write_csv(
        folder / "metrics.csv",
        [
            Row(1, "head", clients_failed=failed),
            Row(0, "start", val_accuracy=0.4),
            Row(12, "train", 0.5, 0.7, 0.7, 0.4),
        ],
    )
    _, found, *_ = sanity_gate(read_records(TABLE, tmp_path))
    assert found.holds


def test_cells_of_several_machines_say_so(tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path, "least-iid", 0, device="Tesla T4", precision="fp16")
    records = read_records(TABLE, tmp_path)
    (note,) = check_origin(records, tmp_path / "smoke")
    assert note == "cells of several devices: Tesla T4, fp16 and cpu, fp32"


def test_clients_that_failed_are_named_in_the_caption(tmp_path: Path) -> None:
    write_all(tmp_path)
    folder = write(tmp_path, "random-nc1", 1)
    rows = [Row(0, "start", val_accuracy=0.6), Row(12, "train", 0.5, 0.7, clients_failed=3)]
    write_csv(folder / "metrics.csv", rows)
    notes = check_origin(read_records(TABLE, tmp_path), tmp_path / "smoke")
    assert notes == [
        "3 replies of failed clients are missing, in 1 of 8 cells; most in smoke/random-nc1 seed 1"
    ]


def test_several_axes_are_compared_as_one(tmp_path: Path) -> None:
    write_all(tmp_path)
    report = {**TABLE.report, "compare": ["rule", "partition"], "reference": "random-iid"}
    table = replace(TABLE, report=report)
    frame = comparisons_frame(table, read_records(table, tmp_path))
    assert frame is not None
    assert frame["rule and partition"].tolist() == ["least-iid", "least-nc1", "random-nc1"]
    assert set(frame["family"]) == {3}
    wrong = replace(table, report={**report, "reference": "random"})
    with pytest.raises(RecordError, match="compares with 'random', which is not among the methods"):
        comparisons_frame(wrong, read_records(wrong, tmp_path))


def test_equal_departures_are_named_in_the_caption(tmp_path: Path) -> None:
    for preset in ACCURACY:
        for seed in (0, 1):
            write(tmp_path, preset, seed, config={"lr": 0.5, "weights": "/home/me/w.pth"})
    notes = check_origin(read_records(TABLE, tmp_path), tmp_path / "smoke")
    assert notes == ["lr = 0.5, not the presets'"]
    made = commands_that_made(TABLE, read_records(TABLE, tmp_path))
    run = "`python -m experiments run smoke --set lr=0.5`"
    assert made == f"{run}, then `collect smoke --set lr=0.5` and `report smoke`"


def test_the_commands_that_made_a_table_are_those_that_were_typed(tmp_path: Path) -> None:
    write_all(tmp_path)
    run = "python -m experiments run smoke"
    for seed in (0, 1):
        sessions = [{"seconds": 1, "command": f"{run} --seeds {seed + 1}"}]
        write(tmp_path, "least-iid", seed, sessions=sessions)
    made = commands_that_made(TABLE, read_records(TABLE, tmp_path))
    assert made.startswith(f"`{run}`, then")  # of the others nobody knows
    for preset in ACCURACY:
        write(tmp_path, preset, 0, sessions=[{"seconds": 1, "command": f"{run} --seeds 1"}])
        write(
            tmp_path, preset, 1, sessions=[{"seconds": 1, "command": f"{run} --engine in-process"}]
        )
    made = commands_that_made(TABLE, read_records(TABLE, tmp_path))
    assert made.startswith(f"`{run} --seeds 1`, `{run} --engine in-process`, then `collect smoke`")


def test_a_table_of_which_a_part_was_run_says_which(tmp_path: Path) -> None:
    for preset in ("least-iid", "least-nc1", "random-nc1"):
        for seed in (0, 1):
            write(tmp_path, preset, seed)
    made = commands_that_made(TABLE, read_records(TABLE, tmp_path))
    run = "`python -m experiments run smoke`"
    assert made.startswith(f"{run} (3 of its 4 presets), then")
    write_all(tmp_path)
    for preset in ACCURACY:
        shutil.move(
            tmp_path / f"smoke/cells/{preset}/seed1", tmp_path / f"smoke/cells/{preset}/seed3"
        )
        folder = tmp_path / f"smoke/cells/{preset}/seed3"
        config = RunConfig.from_mapping(read_toml(folder / "config.toml"))
        (folder / "config.toml").write_text(to_toml(config.with_values(seed=3)))
        summary = json.loads((folder / "summary.json").read_text()) | {"seed": 3}
        (folder / "summary.json").write_text(json.dumps(summary))
    made = commands_that_made(TABLE, read_records(TABLE, tmp_path))
    assert made.startswith(f"{run} (the seeds 0, 3), then")


def test_what_an_earlier_report_had_and_this_one_has_not_is_deleted(tmp_path: Path) -> None:
    write_all(tmp_path)
    table = replace(TABLE, report={**TABLE.report, "figures": ["curves"]})
    write_report(table, tmp_path, tmp_path)
    assert (tmp_path / "smoke/comparisons.csv").exists()
    (tmp_path / "smoke/figures/loss.png").touch()
    for preset in ("random-iid", "random-nc1"):
        shutil.rmtree(tmp_path / "smoke/cells" / preset)
    write_report(table, tmp_path, tmp_path)
    assert not (tmp_path / "smoke/comparisons.csv").exists()
    kept = {path.name for path in (tmp_path / "smoke/figures").iterdir()}
    assert kept and all(name.startswith("curves") for name in kept)


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("fedta run 'a/*' --results-dir '/x y' --jobs=2", "fedta run 'a/*'"),
        (
            "fedta run a --set lr=0.1 --set data-dir=/x --set=seed=3",
            "fedta run a --set lr=0.1 --set seed=3",
        ),
        ("fedta run a --no-resume --max-minutes 3 --engine flower", "fedta run a --engine flower"),
        (
            "fedta run a --set 'weights=/x y/w.pth' --client-gpus auto",
            "fedta run a --set weights=w.pth",
        ),
    ],
)
def test_a_kept_command_says_what_was_run_and_not_where(typed: str, kept: str) -> None:
    assert portable_command(typed) == kept


def test_a_panel_without_a_federation_moves_no_bytes(tmp_path: Path) -> None:
    for preset in ACCURACY:
        moved = {} if "nc1" in preset else {"bytes-up": 0, "bytes-down": 0}
        write(tmp_path, preset, 0, **moved)
    ((_, drawn),) = groups(TABLE, read_records(TABLE, tmp_path))
    figure = against_bytes(TABLE, drawn)
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["nc1"]
    assert against_bytes(TABLE, {"iid": drawn["iid"]}) is None


def measured(seed: int, *, loss: bool, test: bool) -> list[Row]:
    """Return rows of one run, with a loss, and the test set measured in every round."""
    return [
        Row(
            number,
            "train" if number else "start",
            val_accuracy=0.5 + 0.1 * number,
            test_accuracy=0.4 + 0.1 * number if test or number == 2 else None,
            test_loss=(3.0 if test or number == 2 else None),
            val_loss=2.0 - 0.5 * number + seed if loss else None,
        )
        for number in range(3)
    ]


def note(figure: Figure) -> str:
    (legend,) = figure.legends
    return legend.get_title().get_text().replace("\n", " ")


def test_a_loss_is_drawn_where_records_have_one(tmp_path: Path) -> None:
    write_all(tmp_path)
    (_, drawn), *_ = groups(TABLE, read_records(TABLE, tmp_path))
    assert losses(TABLE, drawn) is None  # as of the first records
    assert note(curves(TABLE, drawn)) == ""
    for seed in (0, 1):
        folder = write(tmp_path, "least-nc1", seed)
        write_csv(folder / "metrics.csv", measured(seed, loss=True, test=False))
    (_, drawn), *_ = groups(TABLE, read_records(TABLE, tmp_path))
    figure = losses(TABLE, drawn)
    assert figure is not None
    (axis,) = figure.axes
    assert axis.get_title() == "nc1" and axis.get_xlabel() == "round"
    assert axis.get_ylabel() == "validation loss"
    (line,) = axis.lines
    assert list(line.get_ydata()) == [2.5, 2.0, 1.5]
    for found in (figure, curves(TABLE, drawn)):
        assert 'measure-test = "end"' in note(found)


def test_test_curves_are_dashed_where_there_are_some(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write(tmp_path, "least-nc1", seed, config={"measure-test": "always"})
        write_csv(folder / "metrics.csv", measured(seed, loss=True, test=True))
    (_, drawn), *_ = groups(TABLE, read_records(TABLE, tmp_path))
    accuracy, loss = curves(TABLE, drawn), losses(TABLE, drawn)
    assert loss is not None
    for figure, label in ((accuracy, "accuracy"), (loss, "loss")):
        (axis,) = figure.axes
        assert axis.get_ylabel() == f"validation (solid), test (dashed) {label}"
        assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]
        assert note(figure) == ""
    assert list(accuracy.axes[0].lines[1].get_ydata()) == pytest.approx([0.4, 0.5, 0.6])


def test_a_centralised_panel_is_against_epochs(tmp_path: Path) -> None:
    centralized = {"engine": "centralized", "local-steps": 0}
    write(tmp_path, "least-iid", 0, config=centralized)
    write(tmp_path, "least-nc1", 0)
    (_, drawn), *_ = groups(TABLE, read_records(TABLE, tmp_path))
    assert [axis.get_xlabel() for axis in curves(TABLE, drawn).axes] == ["epoch", "round"]


def test_the_columns_that_first_records_lack_are_not_missed(tmp_path: Path) -> None:
    folder = write(tmp_path, "least-iid", 0)
    rows = read_rows(folder)
    metrics = folder / "metrics.csv"
    first = [name for name in COLUMNS if name not in ADDED]
    with metrics.open("w") as stream:
        writer = csv.DictWriter(stream, first, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert [row["val_accuracy"] for row in read_rows(folder)] == ["0.6", "0.9"]
    metrics.write_text(metrics.read_text().replace("val_accuracy", "accuracy"))
    assert read_rows(folder) == ()
    write_csv(metrics, [Row(0, "start")])
    metrics.write_text(metrics.read_text().strip()[:-2])  # between two columns
    assert read_rows(folder) == ()


def test_points_are_drawn_as_means_in_which_every_seed_weighs_the_same(tmp_path: Path) -> None:
    write_all(tmp_path)
    drawn = dict(groups(TABLE, read_records(TABLE, tmp_path)))[""]
    assert scaled(TABLE, drawn) is None and negated(TABLE, drawn) is None
    clients = {0: [(1, 0.4, 0.8)], 1: [(1, 0.1, 0.6), (2, 0.3, 0.6)]}  # of each seed
    for seed, found in clients.items():
        folder = tmp_path / f"smoke/cells/least-nc1/seed{seed}"
        lines = [f"{client},0.5,{target},{control}" for client, target, control in found]
        (folder / "negation.csv").write_text("\n".join(["client,length,target,control", *lines]))
        (folder / "scaling.csv").write_text(f"scale,val_loss,val_accuracy\n1.0,1.0,0.{seed + 2}\n")
    figure, other = negated(TABLE, drawn), scaled(TABLE, drawn)
    assert figure is not None and other is not None
    (axis,) = figure.axes
    assert [line.get_ydata() for line in axis.lines] == [
        pytest.approx([0.3]), pytest.approx([0.7])
    ]  # fmt: skip
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]
    assert other.axes[0].lines[0].get_ydata() == pytest.approx([0.25])


def test_interference_is_drawn_over_rounds_below_zero_too(tmp_path: Path) -> None:
    write_all(tmp_path)
    drawn = dict(groups(TABLE, read_records(TABLE, tmp_path)))[""]
    assert interference(TABLE, drawn) is None and drift(TABLE, drawn) is None
    for seed in (0, 1):
        rows = [
            "round,own,others,head_accuracy,fresh_head_accuracy",
            f"1,-0.5,{0.1 + seed},0.4,0.5",
            f"4,-0.3,{0.2 + seed},0.3,0.5",
        ]
        folder = tmp_path / f"smoke/cells/least-nc1/seed{seed}"
        (folder / "interference.csv").write_text("\n".join(rows))
    figure, other = interference(TABLE, drawn), drift(TABLE, drawn)
    assert figure is not None and other is not None
    others, own, _ = figure.axes[0].lines
    assert others.get_ydata() == pytest.approx([0.6, 0.7])
    assert own.get_ydata() == pytest.approx([-0.5, -0.3]) and own.get_linestyle() == "--"
    low, high = figure.axes[0].get_ylim()
    assert low < -0.5 and high > 0.7
    assert other.axes[0].lines[0].get_ydata() == pytest.approx([0.4, 0.3])


def test_densities_are_means_over_blocks_and_records(tmp_path: Path) -> None:
    for seed, share in enumerate((0.1, 0.3)):
        shares = {"blocks.0": {"qkv": share, "fc1": 0.2}, "blocks.1": {"qkv": share, "fc1": 0.4}}
        write(tmp_path, "least-iid", seed, **{"mask-density": shares})
        write(tmp_path, "random-iid", seed)
    drawn = dict(groups(TABLE, read_records(TABLE, tmp_path)))[""]
    figure = mask_density(TABLE, drawn)
    assert figure is not None
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["least"]
    np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), [[20.0, 30.0]])


def test_densities_of_a_model_without_kinds_are_by_block(tmp_path: Path) -> None:
    """A mean over blocks would weigh millions of weights like the few of the last norm."""
    shares = {"blocks": {"all": 0.1}, "norm": {"all": 0.9}}
    write(tmp_path, "least-iid", 0, **{"mask-density": shares})
    figure = mask_density(TABLE, dict(groups(TABLE, read_records(TABLE, tmp_path)))[""])
    assert figure is not None
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["blocks", "norm"]
    np.testing.assert_allclose(np.asarray(axis.images[0].get_array()), [[10.0, 90.0]])


def test_lines_are_in_the_order_of_their_axis_whichever_panel_has_them(tmp_path: Path) -> None:
    for name in ("random-iid", "least-nc1", "random-nc1"):  # least is in the second panel alone
        write(tmp_path, name, 0)
    drawn = dict(groups(TABLE, read_records(TABLE, tmp_path)))[""]
    heat, lines = accuracies(TABLE, drawn), curves(TABLE, drawn)
    assert heat is not None and lines is not None
    rows = [label.get_text() for label in heat.axes[0].get_yticklabels()]
    legend = [text.get_text() for text in lines.legends[0].get_texts()]
    assert rows == legend == ["least", "random"]


def test_a_record_of_no_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no cells"):
        read_records(TABLE, tmp_path)
    write_all(tmp_path)
    shutil.move(tmp_path / "smoke/cells/least-iid", tmp_path / "smoke/cells/other")
    with pytest.raises(RecordError, match="belongs to no preset"):
        read_records(TABLE, tmp_path)


def test_paths_are_cut_down_to_names() -> None:
    private = {
        "name": "a/b", "from": "/home/me/w/dino.pth", "warnings": ["weights '~/x/y.pth' are odd"],
        "device": "x86_64, 1 threads", "hub": "timm/vit/model.safetensors", "number": 3,
    }  # fmt: skip
    assert without_paths(private) == private | {
        "from": "dino.pth", "warnings": ["weights 'y.pth' are odd"]
    }  # fmt: skip


@pytest.fixture
def quick_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """The same table with small cells, in a folder of its own."""
    few = {
        "num-clients": 10, "num-server-rounds": 2, "local-steps": 1, "eval-every": 1,
        "calibration-examples": 8,
    }  # fmt: skip
    about = read_toml(presets.FOLDER / "smoke/table.toml")
    (tmp_path / "tables/smoke").mkdir(parents=True)
    content = tomli_w.dumps(about | {"base": about["base"] | few})
    (tmp_path / "tables/smoke/table.toml").write_text(content)
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "tables")
    return load_table("smoke")


def test_cells_are_collected_and_reported(
    tmp_path: Path, quick_table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, results = str(tmp_path / "runs"), tmp_path / "results"
    run = ["--engine", "in-process", "--results-dir", runs, "--seeds", "1"]
    assert main(["run", "smoke/*-nc1", *run]) == ExitStatus.FINISHED
    assert (
        main(["collect", "smoke", "--results-dir", runs, "--out", str(results)])
        == ExitStatus.FINISHED
    )
    assert "2 of 8 cells are finished, and kept" in capsys.readouterr().out
    folder = results / "smoke/cells/least-nc1/seed0"
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"config.toml", "metrics.csv", "summary.json", "mask.bits", "classes.csv"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["frozen-weights-untouched"] is True
    assert 0 < summary["mask-density"]["blocks.0"]["attn.k"] < 1
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.glob("*[ljn]"))
    (record, other) = read_records(quick_table, results)
    assert record.mask is not None and other.mask is not None
    assert record.mask.mean() == pytest.approx(0.1, abs=0.01)
    assert record.classes is not None and record.classes.shape == (10, 10)
    assert main(["report", "--records", str(results)]) == ExitStatus.FINISHED
    assert "frozen weights kept their bits: holds (2 cells" in capsys.readouterr().out
    # What was typed, without what only says where; and what collects and reports the same.
    typed = "`python -m experiments run 'smoke/*-nc1' --engine in-process --seeds 1`"
    page = (results / "smoke/report.md").read_text()
    assert f"{typed}, then `collect smoke --seeds 1` and `report smoke`. 2 cells" in page
    # A file of an earlier record is not taken for one of this run.
    (folder / "interference.csv").write_text("round\n1\n")
    again = ["collect", "smoke/least-nc1", "--results-dir", runs, "--out", str(results)]
    assert main(again) == ExitStatus.FINISHED
    assert {path.name for path in folder.iterdir()} == kept
    files = json.loads((folder / "summary.json").read_text())["files"]
    assert set(files) == kept - {"summary.json"}
    # One that is damaged does not keep the others from being collected.
    shutil.rmtree(tmp_path / "runs/smoke/least-nc1/seed0/checkpoint")
    shutil.rmtree(results)
    capsys.readouterr()
    both = ["collect", "smoke/*-nc1", "--results-dir", runs, "--out", str(results), "--seeds", "1"]
    assert main(both) == ExitStatus.REFUSED
    said = capsys.readouterr()
    assert "error: smoke/least-nc1 seed 0: " in said.err and "has no checkpoint" in said.err
    assert "1 of 2 cells are finished, and kept" in said.out
    assert (results / "smoke/cells/random-nc1/seed0/summary.json").exists()


def test_cells_with_a_record_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Parts(1, 1, 1, 1, 1, 1, 1, 1, (900, 100, 50))
    monkeypatch.setattr("experiments.running.cost.measure_parts", lambda config: parts)
    monkeypatch.setattr("experiments.commands.cells.RESULTS", tmp_path / "kept")
    write(tmp_path / "kept", "least-iid", 0)
    write(tmp_path / "kept", "random-iid", 1, config={"lr": 0.5})  # not what the preset says now
    arguments = ["--skip-kept", "--results-dir", str(tmp_path / "runs")]
    assert main(["run", "smoke/least-iid", "--seeds", "1", *arguments]) == ExitStatus.FINISHED
    assert capsys.readouterr().out.startswith("1 of 1 cells are kept in ")
    assert main(["plan", "smoke/least-iid", *arguments]) == ExitStatus.FINISHED
    assert "1 cell, 0 finished" in capsys.readouterr().out
    main(["plan", "smoke/random-iid", *arguments])
    assert "2 cells, 0 finished" in capsys.readouterr().out
    assert not list((tmp_path / "runs").glob("smoke/*/seed*"))


def test_data_are_read_again_only_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def load(config: RunConfig, node: int | None) -> DataSplits:
        read.append(config)
        return load_run_data(config, node)

    monkeypatch.setattr("fedta_app.training.workspace.load_run_data", load)
    last = LastData()
    small = {"model": "cnn", "weights": "random", "num-clients": 10}
    same = [{"lr": 0.1}, {"lr": 0.2, "mask-rule": "random", "head": "ridge"}, {"num-clients": 7}]
    others = [
        {"seed": 1},
        {"seed": 1, "val-size": 0.2},
        {"val-seed": 1, "seed": 1},
        {"val-seed": 1},
    ]
    for values in [*same, *others]:
        config = RunConfig.from_mapping({**small, **values})
        found, alone = last.workspace(config), build_workspace(config)
        assert found.data.digest == alone.data.digest
        assert found.weights.fingerprint == alone.weights.fingerprint
    fresh = len(same) + len(others)
    assert len(read) - fresh == 1 + 3  # the last two have one split
