"""A model of text, exported: the Python of its card reads a text as the run does."""

from pathlib import Path

import torch

from experiments.running.launch import run_here
from fedta_app.config import RunConfig
from fedta_app.finished import export_run, load_run
from fedta_app.runs.directory import run_path
from tests.roles import write_roles


def test_the_code_of_a_card_reads_text(tmp_path: Path) -> None:
    config = RunConfig.from_mapping({
        "dataset": "shakespeare", "model": "char_lstm", "weights": "random", "num-clients": 4,
        "partition": "natural", "data-dir": str(write_roles(tmp_path)), "num-server-rounds": 1,
        "eval-size": 8, "local-steps": 1, "results-dir": str(tmp_path), "engine": "in-process",
        "threads": 1,
    })  # fmt: skip
    run_here(config)
    run = load_run(run_path(config))
    export = export_run(run, tmp_path / "model.safetensors")
    found: dict[str, object] = {}
    exec(export.code, found)
    text = "Shall I compare thee to a summer's day? Thou art more lovely and more temperate:"
    alphabet = run.kept().facts["model"]["alphabet"]
    inputs = torch.tensor([[alphabet.index(character) for character in text]])
    with torch.no_grad():
        expected = run.model("last")(inputs)
        assert torch.equal(found["model"](found["preprocess"]([text])), expected)  # type: ignore[operator]
    card = export.card.read_text()
    assert "A model of the next of 80 characters" in card and "image" not in card.split("```")[0]
    assert "3,851 training windows of text" in card
