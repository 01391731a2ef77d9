"""Shakespeare's roles: windows, their split by time, and what is left out."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fedta_app.data.loading import DataSplits, ImageSet, draw_clients, load_data
from fedta_app.data.sets.shakespeare import ALPHABET, DATASET, FOLDER, TEST_SHARE, WINDOW
from fedta_app.errors import DataError, PartitionError
from tests.roles import LENGTHS, write_roles

SHARED = Path(__file__).parents[4] / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roles(tmp_path_factory.mktemp("roles"))


@pytest.fixture(scope="module")
def roles(folder: Path) -> DataSplits:
    return load_data("shakespeare", folder, val_size=0.2, seed=0)


def write(data_dir: Path, **texts: str) -> Path:
    (data_dir / FOLDER).mkdir(parents=True)
    for role, text in texts.items():
        (data_dir / FOLDER / f"{role}.txt").write_text(text, encoding="utf-8")
    return data_dir


def decoded(part: ImageSet) -> list[tuple[int, str, str]]:
    assert part.clients is not None
    texts = ["".join(ALPHABET[position] for position in window) for window in part.images]
    answers = [ALPHABET[position] for position in part.labels]
    return list(zip(part.clients.tolist(), texts, answers, strict=True))


def test_the_alphabet_is_leafs() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == DATASET.classes == 80


def test_windows_are_those_of_a_naive_loop_over_the_text(folder: Path, roles: DataSplits) -> None:
    expected: dict[str, list[tuple[int, str, str]]] = {"train": [], "val": [], "test": []}
    number = 0
    for path in sorted((folder / FOLDER).iterdir()):
        text = " ".join(path.read_text().split("\n"))
        test = len(text) - round(TEST_SHARE * len(text))
        val = test - round(0.2 * test)
        if test <= WINDOW:
            continue
        if val <= WINDOW:  # a role always has something to train on
            val = WINDOW + 1
        for name, part in (("train", text[:val]), ("val", text[val:test]), ("test", text[test:])):
            for start in range(len(part)):
                if start + WINDOW < len(part):
                    answer = part[start + WINDOW]
                    expected[name].append((number, part[start : start + WINDOW], answer))
        number += 1
    assert number == len(LENGTHS) - 1
    for name, windows in expected.items():
        assert decoded(getattr(roles, name)) == windows


def test_no_character_of_one_part_is_in_a_window_of_another(tmp_path: Path) -> None:
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 1500))
    data = load_data("shakespeare", write(tmp_path, ROLE=text), val_size=0.2, seed=0)
    touched = []
    for part in (data.train, data.val, data.test):
        starts = [text.index(window + answer) for _, window, answer in decoded(part)]
        touched.append({start + k for start in starts for k in range(WINDOW + 1)})
    assert set.union(*touched) == set(range(1500))  # and every character is in one of them
    assert sum(map(len, touched)) == 1500


def test_the_split_does_not_depend_on_the_seed(folder: Path, roles: DataSplits) -> None:
    assert load_data("shakespeare", folder, val_size=0.2, seed=7).digest == roles.digest
    assert load_data("shakespeare", folder, val_size=0.3, seed=0).digest != roles.digest


def test_roles_with_too_little_text_are_counted(tmp_path: Path) -> None:
    texts = {f"R{length}": "a" * length for length in (60, 89, 90, 1000)}
    data = load_data("shakespeare", write(tmp_path, **texts), val_size=0.5, seed=0)
    assert data.note.startswith("shakespeare: 2 of 4 roles; 2 have no window")
    assert data.train.clients is not None
    assert data.train.clients.bincount().tolist() == [370, 1]  # of 450 and of 81 characters


def test_line_breaks_and_several_spaces_are_one_space_as_in_leaf(tmp_path: Path) -> None:
    text = "Enter   GHOST\n      [aside]  Mark me.\n" * 60
    data = load_data("shakespeare", write(tmp_path, ROLE=text), val_size=0.1, seed=0)
    assert decoded(data.train)[0][1] == re.sub(r"\s+", " ", text)[:WINDOW]


@pytest.mark.parametrize(
    ("texts", "val_size", "sentence"),
    [
        ({}, 0.1, "are not in .*by_play_and_character: put a text file"),
        ({"GHOST": "O horrible! \u00c6 " * 99}, 0.1, "GHOST.txt in .* has the character '\u00c6'"),
        ({"GHOST": "O horrible!" * 20}, 0.1, "too little text: no role has 81 characters in the"),
        ({"GHOST": "O horrible!" * 80}, 0.05, "val_size = 0.05 leaves no text for validation"),
    ],
)
def test_text_that_cannot_be_used_is_refused(
    tmp_path: Path, texts: dict[str, str], val_size: float, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        load_data("shakespeare", write(tmp_path, **texts), val_size=val_size, seed=0)


def test_clients_stay_with_their_examples(roles: DataSplits) -> None:
    assert roles.train.clients is not None
    some = roles.train.subset([5, 2000])
    assert some.clients is not None
    assert some.clients.tolist() == roles.train.clients[[5, 2000]].tolist()
    moved = roles.to("meta").test.clients
    assert moved is not None and moved.device.type == "meta"


def test_drawn_clients_have_all_of_their_examples_and_no_others(roles: DataSplits) -> None:
    drawn = draw_clients(roles, 2, seed=1)
    assert roles.train.clients is not None and drawn.train.clients is not None
    old = [
        next(role for role, seen, _ in decoded(roles.train) if seen == text)
        for text in (decoded(drawn.train)[0][1], decoded(drawn.train)[-1][1])
    ]
    for name in ("train", "val", "test"):
        expected = [
            (old.index(role), *rest) for role, *rest in decoded(getattr(roles, name)) if role in old
        ]
        assert decoded(getattr(drawn, name)) == expected
    assert drawn.digest != roles.digest
    assert draw_clients(roles, 2, seed=1).digest == drawn.digest
    assert len({draw_clients(roles, 3, seed=seed).digest for seed in range(9)}) > 1
    assert draw_clients(roles, 4, seed=1).digest == roles.digest  # all of them


@pytest.mark.parametrize("number", [0, 5])
def test_as_many_clients_as_there_are_can_be_drawn(roles: DataSplits, number: int) -> None:
    with pytest.raises(PartitionError, match="between 1 and the 4 natural clients of shakespeare"):
        draw_clients(roles, number, seed=0)


def test_clients_without_text_to_measure_on_are_refused(roles: DataSplits) -> None:
    alone = {seed: draw_clients_or_why(roles, seed) for seed in range(20)}
    assert "the natural clients that seed" in " ".join(alone.values())
    with pytest.raises(PartitionError, match="digits has no clients"):
        draw_clients(load_data("digits", "", val_size=0.1, seed=0), 2, seed=0)


def draw_clients_or_why(data: DataSplits, seed: int) -> str:
    try:
        return draw_clients(data, 1, seed).digest
    except PartitionError as error:
        return str(error)


# --- The real text


@pytest.fixture(scope="module")
def real() -> Path:
    if not (SHARED / FOLDER).is_dir():
        pytest.skip("no Shakespeare beside the repository")
    return SHARED


def test_the_real_roles(real: Path) -> None:
    data = load_data("shakespeare", real, val_size=0.1, seed=0)
    assert data.train.clients is not None
    sizes = data.train.clients.bincount()
    assert data.note.startswith("shakespeare: 559 of 572 roles; 13 have")
    assert len(sizes) == 559 and sizes.min() == 1 and sizes.max() == 63_477
    assert (len(data.train), len(data.val), len(data.test)) == (1_724_957, 162_484, 183_532)


def test_windows_of_the_real_roles_are_leafs_own(real: Path) -> None:
    """LEAF's train.json holds the first nine tenths of the windows of some roles."""
    leaf = json.loads((real / "shakespeare/leaf/train.json").read_text())["user_data"]
    pool, _ = DATASET.load(real)
    assert pool.clients is not None
    first = torch.cat([torch.tensor([0]), 1 + pool.clients.diff().nonzero()[:, 0]])
    openings = [text for _, text, _ in decoded(pool.subset(first))]
    whole = [windows for windows in leaf.values() if windows["x"][0] in openings]
    assert len(whole) == 9  # LEAF drew a part of the windows of the tenth
    for windows in whole:
        number = min(500, len(windows["x"]))
        at = int(first[openings.index(windows["x"][0])])
        found = decoded(pool.subset(torch.arange(at, at + number)))
        assert [text for _, text, _ in found] == windows["x"][:number]
        assert [answer for *_, answer in found] == windows["y"][:number]
