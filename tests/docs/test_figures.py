"""Figures in the prose of the pages: they are those of the records and of the tuned files."""

import json

from experiments.running.presets import load_table
from tests.docs.pages import ROOT, prose


def words_of(page: str) -> str:
    """Return the prose of a page in one line."""
    return " ".join(prose(ROOT / "docs" / page).split())


def test_what_deployment_says_of_nodes_is_what_the_trial_recorded() -> None:
    text = words_of("deployment.md")
    record = json.loads((ROOT / "results/endurance/machines.json").read_text())
    assert f"commit {record['code']['commit'][:7]})" in text
    dense, half, tenth, hundredth = record["traffic"]
    assert f"{dense['up-mb']:.1f} MB for all weights (`metrics.csv`: " in text
    assert f"{half['up-mb']:.1f} at density 0.5 ({half['up-mb-recorded']:.1f})" in text
    assert f"{tenth['up-mb']:.1f} at 0.1 ({tenth['up-mb-recorded']:.2f})" in text
    least, most = sorted(hundredth[f"{way}-mb"] for way in ("up", "down"))
    assert f"{least:.2f} to {most:.2f} at 0.01" in text
    recovery = record["recovery"]
    assert recovery["rounds-without-it"] == 2
    assert f"was back after {recovery['seconds']:.0f} s and two rounds without it" in text


def test_the_rates_that_the_course_names_are_those_that_were_tuned() -> None:
    rates = {
        preset.name: preset.values["lr"]
        for table in ("mask-rules", "communication")
        for preset in load_table(table, "small").presets
    }
    dense, tenth = rates["dense-nc5-frozen"], rates["least-nc5-frozen"]
    assert rates["d100-nc5"] == dense and rates["d10-nc5"] == tenth
    text = words_of("assignment.md")
    assert f"{tenth / dense:.0f} times that of all weights ({tenth} against {dense})" in text
    hundredth = rates["d1-nc5"]
    assert f"hundredth {hundredth / dense:.0f} times ({hundredth})" in text
