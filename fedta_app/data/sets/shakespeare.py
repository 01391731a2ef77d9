"""Shakespeare's plays by role: 80 characters in, the next one out.

Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018 (arXiv 1812.01097), whose task this
is: only the character after a window is predicted. McMahan et al. (AISTATS 2017), who brought the
data set up, predict every character of an unrolled sequence, which is another task.

`<data-dir>/shakespeare/by_play_and_character/` holds a text file for each role, as LEAF's
`preprocess_shakespeare.py` writes them. As in LEAF, a line break is a space and several spaces are
one, and windows have stride 1. So neighbours share 79 of their 80 characters, and a random split of
windows would test on what was trained. The text of each role is split instead, in its order: the
last tenth is for test, and the last `val-size` of what is left for validation. No character of one
part is in a window of another.
"""

import re
from pathlib import Path

import numpy as np
import torch

from fedta_app.data.sets.base import Dataset, ImageSet, IntArray
from fedta_app.errors import DataError

# LEAF's, in its order; a line break never occurs, and keeps the positions of the others.
ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
WINDOW = 80
TEST_SHARE = 0.1
FOLDER = "shakespeare/by_play_and_character"
_POSITIONS = {character: position for position, character in enumerate(ALPHABET)}


def _read(data_dir: Path) -> dict[str, IntArray]:
    """Return the text of each role, as positions in the alphabet, in the order of the files."""
    folder = data_dir / FOLDER
    try:
        texts = {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder} cannot be read ({error})") from error
    if not texts:
        raise DataError(
            f"Shakespeare's plays are not in {folder}: put a text file for each role there, as "
            "LEAF's data/shakespeare/preprocess writes them into raw_data/by_play_and_character"
        )
    return {role: _positions(role, text) for role, text in texts.items()}


def _positions(role: str, text: str) -> IntArray:
    one_line = re.sub(" +", " ", text.replace("\n", " "))
    if unknown := set(one_line) - set(ALPHABET):
        raise DataError(
            f"{role}.txt in {FOLDER} has the character {min(unknown)!r}, which is not one of the "
            f"{len(ALPHABET)} characters of LEAF's alphabet"
        )
    return np.array([_POSITIONS[character] for character in one_line], dtype=np.int64)


def _test_length(text: IntArray) -> int:
    """Return how many characters at the end of a role's text are for test."""
    return round(TEST_SHARE * len(text))


def _is_kept(text: IntArray) -> bool:
    """Tell whether there is a window, and the character behind it, before the test text."""
    return len(text) - _test_length(text) > WINDOW


def _load(data_dir: Path) -> tuple[ImageSet, ImageSet]:
    """Return the windows for training and validation, and those for test, role by role."""
    pool: list[ImageSet] = []
    test: list[ImageSet] = []
    for number, text in enumerate(filter(_is_kept, _read(data_dir).values())):
        cut = len(text) - _test_length(text)
        pool.append(_windows(text[:cut], number))
        test.append(_windows(text[cut:], number))
    if not sum(map(len, test)):
        raise DataError(
            f"{data_dir / FOLDER} has too little text: no role has {WINDOW + 1} characters in the "
            f"last {TEST_SHARE:.0%} of its text, which are for test"
        )
    return _joined(pool), _joined(test)


def _windows(text: IntArray, role: int) -> ImageSet:
    """Return every window of a text that has a next character."""
    number = max(0, len(text) - WINDOW)
    characters = torch.from_numpy(text)
    windows = torch.empty(0, WINDOW, dtype=torch.uint8)
    if number:
        windows = characters[:-1].to(torch.uint8).unfold(0, WINDOW, 1)
    return ImageSet(windows, characters[len(text) - number :], torch.full((number,), role))


def _joined(parts: list[ImageSet]) -> ImageSet:
    images, labels, clients = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("images", "labels", "clients")
    )
    return ImageSet(images, labels, clients)


def _split(pool: ImageSet, val_size: float) -> tuple[IntArray, IntArray]:
    """Return the indices of training windows and of those in the last text of each role.

    Every role keeps a window for training. Windows that begin before the cut and end behind it are
    in neither part.
    """
    assert pool.clients is not None
    train, val, start = [], [], 0
    for windows in torch.bincount(pool.clients).tolist():
        length = min(round(val_size * (windows + WINDOW)), windows - 1)  # of the validation text
        stop = start + windows
        train.append(np.arange(start, stop - length))
        val.append(np.arange(stop - max(0, length - WINDOW), stop))
        start = stop
    if not sum(map(len, val)):
        raise DataError(
            f"val_size = {val_size} leaves no text for validation: no role has {WINDOW + 1} "
            "characters in it"
        )
    return np.concatenate(train), np.concatenate(val)


def _note(data_dir: Path) -> str:
    """Return how many roles are left out because they have too little text."""
    texts = _read(data_dir)
    kept = sum(map(_is_kept, texts.values()))
    return (
        f"shakespeare: {kept} of {len(texts)} roles; {len(texts) - kept} have no window of "
        f"{WINDOW} characters before the last {TEST_SHARE:.0%} of their text, which are for test"
    )


DATASET = Dataset(
    "shakespeare",
    classes=len(ALPHABET),
    images=0,
    load=_load,
    note=_note,
    split=_split,
    alphabet=ALPHABET,
    natural="roles",
)
