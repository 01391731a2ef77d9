"""A few small roles in the files of LEAF's Shakespeare, for tests without the real ones."""

from pathlib import Path

from fedta_app.data.sets.shakespeare import FOLDER
from fedta_app.seeding import numpy_generator

# Characters of each role. The first has too little text; the second has text for training only.
LENGTHS = {"A_BOY": 60, "B_CLERK": 150, "C_DUKE": 1400, "D_KING": 2600, "E_QUEEN": 1000}
_WORDS = ["the", "king", "and", "his", "queen", "shall", "not", "be", "my", "lord;", "Farewell!"]


def write_roles(data_dir: Path) -> Path:
    """Write the roles, as sentences of words drawn at random, and return the folder of the data."""
    folder = data_dir / FOLDER
    folder.mkdir(parents=True)
    for role, length in LENGTHS.items():
        words = numpy_generator(role).choice(_WORDS, size=length)
        lines = [" ".join(words[start : start + 8]) for start in range(0, length, 8)]
        (folder / f"{role}.txt").write_text("\n".join(lines)[:length])
    return data_dir
