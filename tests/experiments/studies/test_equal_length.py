"""Rates at which updates have a length: masks are those of runs, and lengths are what was asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.studies import agreement, equal_length
from experiments.studies.equal_length import rate_of_length, start_of, update_length
from fedta_app.config import RunConfig
from fedta_app.files import read_toml
from tests.server_app.masked import MASKED, run, stored_mask


@pytest.mark.parametrize(
    "rule", ["least-sensitive", pytest.param("random", marks=pytest.mark.slow)]
)
def test_a_rate_gives_the_length_and_the_mask_is_that_of_a_run(tmp_path: Path, rule: str) -> None:
    values = {**MASKED, "mask-rule": rule, "clip-norm": 1.0, "calibration-batch-size": 8}
    space, mask = start_of(RunConfig.from_mapping({**values, "cache-dir": str(tmp_path / "cache")}))
    assert mask is not None
    summary = run(tmp_path, **values, **{"cache-dir": ""})
    assert torch.equal(mask.mask, stored_mask(tmp_path, summary))
    start = space.weights.vector.clone()
    lr = rate_of_length(space, mask, target=0.02, lr=0.5)
    assert update_length(space, mask, start, lr) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(space.weights.vector, start)
    _, same = start_of(RunConfig.from_mapping({**values, "cache-dir": str(tmp_path / "cache")}))
    assert same is not None and torch.equal(same.mask, mask.mask)


def test_an_interrupted_search_keeps_its_rates_and_says_which_are_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(config: RunConfig) -> tuple[Any, None]:
        if config.name.endswith("-nc5"):  # the second place
            raise KeyboardInterrupt
        return SimpleNamespace(weights=SimpleNamespace(vector=torch.zeros(1))), None

    path = tmp_path / "tuned.toml"
    path.write_text("[least-iid]\nlr = 0.5\n[least-nc5]\nlr = 0.5\n")
    monkeypatch.setattr(equal_length, "tuned_paths", lambda *_: [path])
    monkeypatch.setattr(equal_length, "start_of", start)
    monkeypatch.setattr(equal_length, "update_length", lambda *_: 1.0)
    monkeypatch.setattr(equal_length, "rate_of_length", lambda *_: 0.25)
    with pytest.raises(KeyboardInterrupt):
        equal_length.find_rates("small", str(tmp_path), seed=100)
    found = read_toml(path)
    assert found["least-iid"] == found["random-iid"] == {"lr": 0.25}
    assert found["least-nc5"] == {"lr": 0.5} and "dense-nc5" not in found
    assert "# Not those of least-nc5, which were there before.\n" in path.read_text()


def test_a_study_without_data_or_scale_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = ["--data-dir", str(tmp_path / "nowhere")]
    for study, words, sentence in (
        (equal_length, ["--scale", "vast"], "there is no scale 'vast'"),
        (equal_length, ["--scale", "blocks"], "nowhere"),
        (agreement, ["--out", str(tmp_path / "out.json")], ""),
    ):
        with pytest.raises(SystemExit) as end:
            study.main([*words, *nowhere])
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert "error: " in said and sentence in said and "Traceback" not in said
    assert not (tmp_path / "out.json").exists()
