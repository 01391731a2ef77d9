"""docs/first-experiment.md: its examples, done as it says, and the figures that it works out."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench_gpu import counted
from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from experiments.running.presets import select
from fedta_app.training.steps import mini_batches
from tests.docs.pages import ROOT, blocks, commands, prose

PAGE = ROOT / "docs" / "first-experiment.md"


def test_the_estimate_for_a_gpu_follows_from_the_count_of_operations() -> None:
    text = " ".join(prose(PAGE).split())
    each = counted()["training-of-an-image"]
    assert f"{each / 1e9:.2f} GFLOP for each image" in text
    petaflop = {}
    for name in ("iid-j4", "nc5-j16"):
        _, (preset,) = select(f"heterogeneity/{name}")
        config = preset.config({})
        clients = config.fraction_train * config.num_clients
        size, steps = config.batch_size, config.local_steps
        seen = sum(map(len, mini_batches(450, size, steps, torch.Generator())))
        petaflop[name] = config.num_server_rounds * clients * seen * each / 1e15
    assert f"which is {petaflop['iid-j4']:.0f} PFLOP; with J = 16" in text
    assert f"it is {petaflop['nc5-j16']:.0f} PFLOP" in text
    for share, said in ((0.25, "a quarter of that, a cell takes"), (0.1, "a tenth,")):
        minutes = sorted((trained + 1) / (0.065 * share) / 60 for trained in petaflop.values())
        assert f"{said} {minutes[0]:.0f} to {minutes[-1]:.0f} minutes" in text
    table, presets = select("heterogeneity")
    assert f"{table.seeds * len(presets)} cells of {len(presets)} presets" in text


@pytest.mark.slow
def test_a_first_run_prints_the_lines_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = (
        line for line in commands(PAGE) if line.endswith("demo/masked --engine in-process")
    )
    words = [*shlex.split(command)[3:], "--results-dir", str(tmp_path)]
    assert main([*words, "--set", "num-server-rounds=4"]) == ExitStatus.FINISHED
    printed = [line.partition(" |")[0] for line in capsys.readouterr().out.splitlines()]
    # A slow machine says more: how far a round is, and rounds without a measurement.
    printed = [line for line in printed if not re.match(r" ?calibrate round \d", line)]
    (shown,) = (b.text.splitlines() for b in blocks(PAGE) if "demo/masked/seed0\n" in b.text)
    before_the_dots = [line.partition(" |")[0] for line in shown[1 : shown.index("    ...")]]
    assert printed[1 : 1 + len(before_the_dots)] == before_the_dots


@pytest.mark.slow
def test_the_example_of_an_image_folder_runs(tmp_path: Path) -> None:
    for block in blocks(PAGE):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    lines = [shlex.split(line) for line in commands(PAGE)]
    drawing, running = (words for words in lines if {"make_shapes.py", "dataset=folder"} & {*words})
    for words in (drawing, [*running, "--results-dir", "runs", "--set=cache-dir=cache"]):
        assert words[0] == "python"
        result = subprocess.run(
            [sys.executable, *words[1:]], cwd=tmp_path, text=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout.splitlines()
    (shown,) = (b.text.splitlines() for b in blocks(PAGE) if "decoding" in b.text and not b.title)
    assert said[:2] == shown[:2]  # what is read, and how it is divided
    assert said[-2].startswith("finished: train round 24")
