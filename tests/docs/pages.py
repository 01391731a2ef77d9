"""The Markdown pages for users, the fenced blocks in them, and a copy of the app to do them in."""

import os
import re
import shlex
import shutil
import subprocess
import sys
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


_APP = ["fedta_app", "engine", "client_app", "strategies", "server_app", "experiments"]


def app_with(page: Path, folder: Path) -> Path:
    """Copy the app into a folder, add the files of the page, commit, and return the folder."""
    for name in _APP:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / ".gitignore", folder)
    for block in blocks(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as stream:  # an example replaces nothing
                stream.write(block.text)
    (folder / "results").mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "The page"]):
        subprocess.run([*git, *command], cwd=folder, check=True)
    return folder


def run_console(page: Path, app: Path) -> dict[str, str]:
    """Run the lines of a page's console blocks in their order; return what each printed."""
    printed = {}
    for block in blocks(page):
        for line in block.text.splitlines() if block.language == "console" else ():
            words = shlex.split(line.removeprefix("$ "))
            assert words[0] == "python"
            run = subprocess.run(
                [sys.executable, *words[1:]], cwd=app, text=True, capture_output=True,
                env={**os.environ, "PYTHONPATH": str(app)},
            )  # fmt: skip
            assert run.returncode == 0, f"{line}\n{run.stdout}\n{run.stderr}"
            printed[line.removeprefix("$ ")] = run.stdout
    return printed


def check_style(page: Path, app: Path) -> None:
    """Check that the Python files of a page pass the repository's own checks."""
    files = [block.title for block in blocks(page) if block.title.endswith(".py")]
    for command in (["format", "--check"], ["check"]):
        run = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files], cwd=app, text=True,
            capture_output=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout
