import json
import string
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from experiments.pretraining import letters
from experiments.pretraining.digits import main, pretrain, probe_digits
from experiments.pretraining.letters import CLASSES, FONTS, HELD_OUT_FONTS, distort, draw_glyphs
from fedta_app.errors import ConfigError
from fedta_app.models.building import build_model


def test_only_letters_are_drawn():
    assert set(letters.LETTERS) == set(string.ascii_letters)
    assert len(CLASSES) == len(set(CLASSES)) == 37  # as EMNIST counts letters without digits
    assert set(HELD_OUT_FONTS) < set(FONTS) and len(set(FONTS)) == 22


def test_glyphs_fill_their_box_and_carry_their_class():
    glyphs, labels = draw_glyphs(FONTS[:2])
    assert glyphs.shape == (104, 1, 64, 64)
    for glyph in glyphs:
        rows, columns = torch.nonzero(glyph[0] > 0.05, as_tuple=True)
        assert max(rows.max() - rows.min(), columns.max() - columns.min()) >= 60
    by_letter = dict(zip(letters.LETTERS, labels.tolist(), strict=False))
    assert by_letter["O"] == by_letter["o"] and by_letter["A"] != by_letter["a"]
    assert CLASSES[by_letter["q"]] == "q" and CLASSES[by_letter["z"]] == "Z"
    assert labels[:52].tolist() == labels[52:].tolist()


@pytest.mark.parametrize("font", FONTS)
def test_every_font_draws_52_different_letters(font):
    glyphs, _ = draw_glyphs((font,))
    assert len({glyph.numpy().tobytes() for glyph in glyphs}) == 52


def test_images_have_the_format_of_the_digits():
    glyphs, _ = draw_glyphs(FONTS[:1])
    images = distort(glyphs.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0))
    assert images.shape == (1040, 1, 8, 8) and images.dtype == torch.uint8
    levels = {round(level * 255 / 16) for level in range(17)}
    assert set(images.unique().tolist()) == levels
    again = distort(glyphs.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0))
    other = distort(glyphs.repeat(20, 1, 1, 1), torch.Generator().manual_seed(1))
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert not torch.equal(images[:52], images[52:104])  # each image is distorted by itself


def test_two_runs_write_the_same_file_and_it_loads(tmp_path):
    for name in ("a", "b"):
        main(["--out", str(tmp_path / name / "w.safetensors"), "--seed", "3", "--steps", "2"])
    first, second = (tmp_path / name / "w.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with safe_open(first, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert "--seed 3 --steps 2" in about["command"] and "digits, 5-nn" in about["measured"]
    options = {"image_size": 0, "num_classes": 10, "in_channels": 1, "seed": 0}
    loaded = build_model("vit_digits", weights=str(first), **options)
    assert torch.equal(loaded.model.cls_token, pretrain(seed=3, steps=2)[0].cls_token)
    assert not loaded.source.head_loaded


def test_probes_measure_accuracy():
    options = {"image_size": 0, "num_classes": 10, "in_channels": 1, "seed": 0}
    model = build_model("vit_digits", weights="random", **options).model.eval()
    measured = probe_digits(model)
    assert set(measured) == {"ridge", "5-nn"}
    assert all(0.1 < value < 0.8 for value in measured.values())


def test_a_font_that_matplotlib_lacks_is_named():
    with pytest.raises(ConfigError, match=r"need matplotlib 3\.11 or newer: .* has no comic$"):
        draw_glyphs(("cmr10", "comic"))


def test_what_cannot_be_written_is_refused_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{main.__module__}.pretrain", None)
    (tmp_path / "file").touch()
    for arguments, said in (
        (["--out", str(tmp_path / "file/w.safetensors")], "is not allowed"),
        (["--out", str(tmp_path / "w.safetensors"), "--steps", "0"], "--steps 0 is not allowed"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err
