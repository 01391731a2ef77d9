"""Image folders: what is listed, how it is decoded, what is kept, and what is refused."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import center_crop, resize

from fedta_app.cache import ArrayCache
from fedta_app.data import decoding, image_folder, load_data
from fedta_app.data.decoding import decode
from fedta_app.errors import DataError
from fedta_app.progress import Count, Reporter

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def fill(folder: Path, number: int, *, first: int = 0) -> None:
    """Put images of one colour, of unequal sizes, into a folder for each colour."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(first, first + number):
            Image.new("RGB", (5 + k, 9), colour).save(folder / name / f"{k}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    fill(tmp_path / "photos" / "train", 10)
    fill(tmp_path / "photos" / "test", 2, first=10)
    return tmp_path / "photos"


# --- listing


def test_classes_and_images_are_those_of_torchvision(photos: Path, tmp_path: Path) -> None:
    red, blue = photos / "train" / "red", photos / "train" / "blue"
    (red / "0.png").rename(red / "0.PNG")
    (red / "more").mkdir()
    shutil.copy(red / "1.png", red / "more" / "a.png")
    (blue / "link.png").symlink_to(red / "1.png")
    outside = tmp_path / "elsewhere"
    fill(outside, 2)
    (photos / "train" / "yellow").symlink_to(outside / "green")
    (red / "notes.txt").write_text("not an image")
    theirs = ImageFolder(str(photos / "train"))
    (photos / "train" / ".ipynb_checkpoints").mkdir()  # ImageFolder refuses it as a class
    (red / "._1.png").write_text("of a Mac")
    dataset = image_folder(photos, 8)
    pool, _ = dataset.load(tmp_path)
    assert dataset.classes == len(theirs.classes) == 4
    assert dataset.images == len(theirs) == 34
    assert sorted(pool.labels.tolist()) == sorted(theirs.targets)
    for c, name in enumerate(theirs.classes):
        colour = (0, 255, 0) if name == "yellow" else COLOURS[name]
        of_class = pool.images[pool.labels == c].permute(0, 2, 3, 1)
        right = (of_class == torch.tensor(colour)).all(dim=3).all(dim=2).all(dim=1)
        assert right.sum() == len(right) - (name == "blue")  # the link leads to a red one
    assert dataset.note.endswith("left out, as no images of a class: notes.txt")


def test_a_link_to_a_folder_above_ends(photos: Path) -> None:
    (photos / "train" / "red" / "again").symlink_to(photos / "train" / "red")
    assert image_folder(photos, 8).images == 30


def test_classes_are_in_the_order_of_their_names_whatever_the_disk_says(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_data(image_folder(photos, 8), tmp_path, val_size=0.2, seed=0)
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: sorted(listing(self), reverse=True))
    found = load_data(image_folder(photos, 8), tmp_path / "other", val_size=0.2, seed=0)
    assert found.digest == expected.digest


def test_test_images_are_those_of_test_or_val_or_a_fifth(photos: Path, tmp_path: Path) -> None:
    def sizes() -> tuple[int, int]:
        pool, test = image_folder(photos, 8).load(tmp_path)
        return len(pool), len(test)

    assert sizes() == (30, 6)
    fill(photos / "val", 3, first=20)
    assert sizes() == (39, 6)  # both: val is drawn from with train
    assert "from train and val, test images from test" in image_folder(photos, 8).note
    shutil.rmtree(photos / "test")
    assert sizes() == (30, 9)
    shutil.rmtree(photos / "val")
    assert sizes() == (24, 6) and image_folder(photos, 8).images == 24


def test_a_fifth_is_the_same_for_every_seed_and_stratified(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "test")
    splits = [
        load_data(image_folder(photos, 8), tmp_path, val_size=0.25, seed=seed) for seed in (0, 1)
    ]
    for data in splits:
        assert torch.equal(data.test.images, splits[0].test.images)
        for part, number in ((data.train, 6), (data.val, 2), (data.test, 2)):
            assert torch.bincount(part.labels).tolist() == [number] * 3
    assert "20% of them, for every seed" in splits[0].note


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


# What is done to the folder, and what is said of it.
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "there is no folder .*photos: image-folder is the name of a"),
    "no train": (
        lambda f: (f / "train").rename(f / "training"),  # type: ignore[misc, return-value]
        r"has no folder train, which holds .* \(it has test, training\)",
    ),
    "nothing at all": (empty, r"has no folder train, .* \(it has nothing\)"),
    "no classes": (lambda f: empty(f / "train"), "train has no class folders: a classifier needs"),
    "one class": (
        lambda f: [shutil.rmtree(f / "train" / c) for c in ("red", "green")],  # type: ignore
        "train has one class, blue: a classifier needs two or more",
    ),
    "an empty class": (
        lambda f: empty(f / "train" / "red"),
        "the class folder .*red has no images: put some there .* or remove it",
    ),
    "a class of test alone": (
        lambda f: shutil.rmtree(f / "train" / "green"),
        "test has a class green that .*train lacks",
    ),
    "no test images": (lambda f: empty(f / "test"), "test has no images: put some there, or"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_does_not_do_gets_one_sentence(case: str, photos: Path) -> None:
    spoil, sentence = WRONG[case]
    spoil(photos)
    with pytest.raises(DataError, match=sentence) as refusal:
        image_folder(photos, 8)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_class_whose_name_is_not_utf8_is_refused(photos: Path) -> None:
    try:
        (photos / "train" / "red").rename(photos / "train" / os.fsdecode(b"caf\xe9"))
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(DataError, match=r"not UTF-8, b'caf.xe9': rename it"):
        image_folder(photos, 8)


def test_images_that_do_not_fit_into_memory_are_refused_first(photos: Path) -> None:
    with pytest.raises(DataError, match=r"has 36 images, which take .* GB of memory at 10000000"):
        image_folder(photos, 10_000_000)


# --- decoding


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("shape", [(40, 40), (64, 40), (33, 77), (20, 20)])
def test_unequal_sizes_are_cropped_and_resized_as_in_torchvision(
    tmp_path: Path, size: int, shape: tuple[int, int]
) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [128 + 100 * np.sin(rows / 9 + columns / 7 + channel) for channel in range(3)]
    image = Image.fromarray(np.dstack(waves).astype(np.uint8))
    image.save(tmp_path / "a.png")
    theirs = np.asarray(center_crop(resize(image, [size], interpolation=3), [size, size]))
    ours = decode(tmp_path / "a.png", size).transpose(1, 2, 0)
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    # Theirs rounds the longer side to whole pixels before it crops.
    assert difference.mean() < 6 and (difference.max() == 0 or shape[0] != shape[1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    # How a camera stores the upright picture, by the EXIF standard's value.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png", 6).transpose(1, 2, 0), upright)


def test_every_mode_becomes_three_channels_of_8_bits(tmp_path: Path) -> None:
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    rgba = np.dstack([grey, grey, grey, np.full((4, 4), 255, np.uint8)])
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 128
    palette = Image.fromarray(grey).convert("P")
    palette.info["transparency"] = 0
    images = {
        "L": Image.fromarray(grey),
        "P": Image.fromarray(grey).convert("P"),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "RGBA": Image.fromarray(rgba),
        "LA": Image.fromarray(rgba).convert("LA"),
        "P with transparency": palette,
        "1": Image.fromarray(np.where(grey > 100, 255, 0).astype(np.uint8)).convert("1"),
    }
    for mode, image in images.items():
        image.save(tmp_path / "a.png")
        found = decode(tmp_path / "a.png", 4)
        assert found.shape == (3, 4, 4) and found.dtype == np.uint8
        expected = grey.copy()
        if mode in ("RGBA", "LA"):
            expected[0, 0], expected[0, 1] = 255, round(16 * 128 / 255 + 127)
        elif mode == "P with transparency":
            expected[0, 0] = 255
        elif mode == "1":
            expected = np.where(grey > 100, 255, 0).astype(np.uint8)
        assert np.abs(found.astype(int) - expected).max() <= 1, mode


def test_cmyk_and_tiff_floats(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    red, green, blue = decode(tmp_path / "red.jpg", 4)[:, 0, 0].astype(int)
    assert red > 240 and green < 15 and blue < 15
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match=r"float\.tif cannot be read .* not numbers of 8 or 16"):
        decode(tmp_path / "float.tif", 4)


def _truncate(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:-400])


def _bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = Path(path.with_name("1.png")).read_bytes()
    path.write_bytes(content[:16] + header + content[29:])


@pytest.mark.parametrize(
    "spoil", [lambda p: p.write_bytes(b""), lambda p: p.write_text("x"), _truncate, _bomb]
)
def test_a_file_that_is_no_image_is_named(
    photos: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(photos / "train" / "green" / "4.png")
    with pytest.raises(DataError, match=r"green/4\.png cannot be read as an image .* replace") as e:
        load(photos, tmp_path)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("cache/*/entry.json"))


def test_a_dangling_link_is_named(photos: Path, tmp_path: Path) -> None:
    (photos / "train" / "red" / "z.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"z\.png cannot be read"):
        load_data(image_folder(photos, 8), tmp_path, val_size=0.2, seed=0)


# --- what is kept


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    seen: list[Path] = []

    def watched(path: Path, size: int) -> np.ndarray:
        seen.append(path)
        return decode(path, size)

    monkeypatch.setattr(decoding, "decode", watched)
    return seen


def test_other_code_of_decoding_decodes_again(
    photos: Path, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(photos, tmp_path)
    number = len(decoded)
    monkeypatch.setattr(decoding, "_CODE", "other")
    load(photos, tmp_path)
    assert len(decoded) == 2 * number


def load(photos: Path, data_dir: Path, size: int = 8) -> str:
    dataset = image_folder(photos, size, ArrayCache(data_dir / "cache", 1e9))
    return load_data(dataset, data_dir, val_size=0.2, seed=0).digest


def test_images_are_decoded_once_for_a_size(
    photos: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    first = load(photos, tmp_path)
    assert len(decoded) == 36
    assert load(photos, tmp_path) == first and len(decoded) == 36
    load(photos, tmp_path, size=4)
    assert len(decoded) == 72
    assert load(photos, tmp_path) == first and len(decoded) == 72


def add(photos: Path) -> None:
    shutil.copy(photos / "train/red/1.png", photos / "train/red/99.png")


def overwrite_with_equal_size_and_time(photos: Path) -> None:
    path = photos / "train/red/1.png"
    before = path.stat()
    Image.new("RGB", (6, 9), (254, 0, 0)).save(path)
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        add,
        lambda photos: (photos / "train/red/1.png").unlink(),
        lambda photos: (photos / "train/red/1.png").rename(photos / "train/blue/98.png"),
        overwrite_with_equal_size_and_time,
    ],
)
def test_what_is_kept_is_never_of_other_files(
    photos: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    before = load(photos, tmp_path)
    change(photos)
    after = load(photos, tmp_path)
    assert after != before
    assert after == load(photos, tmp_path / "anew")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_made_anew(
    photos: Path, tmp_path: Path, damage: str, decoded: list[Path]
) -> None:
    expected = load(photos, tmp_path)
    (entry,) = tmp_path.glob("cache/*/array.npy")
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    entry.write_bytes({"cut": content[:-9], "empty": b""}.get(damage, content))
    assert load(photos, tmp_path) == expected and len(decoded) == 72
    assert load(photos, tmp_path) == expected and len(decoded) == 72


def test_long_decoding_says_how_far_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reporter = Reporter(watched=False)
    monkeypatch.setattr("fedta_app.progress._EVERY", 0.0)
    monkeypatch.setattr(decoding, "phase", reporter.phase)
    monkeypatch.setattr(decoding, "counting", reporter.counting)
    add = Count.add

    def adding(self: Count, number: int = 1) -> None:
        add(self, number)
        reporter.look()

    monkeypatch.setattr(Count, "add", adding)
    load(photos, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "photos: decoding 36 images to 8 x 8 pixels"
    assert said[-1] == "decoding photos: 36 of 36 images, 0:00:00 left"
