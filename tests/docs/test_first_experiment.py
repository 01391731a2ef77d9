"""docs/first-experiment.md: its example of an image folder, done as it says."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, commands

PAGE = ROOT / "docs" / "first-experiment.md"


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
