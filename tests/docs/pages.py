"""The Markdown pages for users, and the fenced blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and the file that its title names."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    found = []
    for info, text in _FENCE.findall(page.read_text()):
        title = re.search(r'title="(.*?)"', info)
        language = info.split()[0] if info else ""
        found.append(Block(language, title[1] if title else "", text))
    return found


def commands(page: Path) -> list[str]:
    """Return the lines of a page's blocks of commands, continued lines joined, comments cut."""
    lines = []
    for block in blocks(page):
        if block.language in ("", "console"):
            text = block.text.replace("\\\n", " ")
            lines += [re.sub(r"\s#.*", "", line.removeprefix("$ ")) for line in text.splitlines()]
    return lines


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())
