"""docs/finished-model.md, done as it says, from its first command to its last."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.exit_status import ExitStatus
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "finished-model.md"


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE):
        if block.language == "python":
            names: dict[str, Any] = {}
            exec(block.text, names)
        elif block.language == "console":
            for line in block.text.splitlines():
                prefix, words = "$ python -m experiments ", line
                assert words.startswith(prefix)
                assert main(shlex.split(words.removeprefix(prefix))) == ExitStatus.FINISHED
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "exported/digits.md" in found
    for name in ("model/best.safetensors", "evaluation/last-test/clients.csv"):
        assert f"runs/demo/masked/seed0/{name}" in found
