"""The pages for users: their links lead somewhere, their commands and keys exist."""

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from docs.keys import PAGE, filled
from experiments.arguments import parse
from experiments.running.presets import parse_overrides, select, tables
from fedta_app.config import KEYS, RunConfig
from tests.docs.pages import PAGES, ROOT, blocks, commands, prose

_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
_NAMES = [page.name for page in PAGES]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=_NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]*)\)", prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_and_the_index_link_every_page() -> None:
    found = {}
    for start in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        links = re.findall(r"\]\(([^)#]*\.md)", prose(start))
        found[start.name] = {(start.parent / link).resolve() for link in links}
    pages = {page for page in PAGES if page.name not in ("README.md", "index.md")}
    assert pages <= found["README.md"] and pages <= found["index.md"]


@pytest.mark.parametrize("page", PAGES, ids=_NAMES)
def test_commands_exist(page: Path) -> None:
    inline = re.findall(
        r"`((?:python -m|fedta|make|flwr run) [^`]*)`", prose(page).replace("\n", " ")
    )
    for line in [*commands(page), *inline]:
        for part in re.split(r"&&|;", line):
            words = shlex.split(part)
            if words[:1] == ["make"]:
                targets = [word for word in words[1:] if "=" not in word]
                assert set(targets) <= _TARGETS, line
            elif words[:2] == ["python", "-m"]:
                check_module(words[2], words[3:])
            elif words[:1] == ["fedta"]:
                check_module("experiments", words[1:])
            elif words[:2] == ["flwr", "run"] and "--run-config" in words:
                value = words[words.index("--run-config") + 1]
                if "=" in value:
                    RunConfig.from_mapping(parse_overrides(shlex.split(value)))


def check_module(module: str, arguments: list[str]) -> None:
    """Check that there is such a module, and that its arguments are right."""
    assert importlib.util.find_spec(module), module
    if module != "experiments" or not arguments:
        return
    if len(arguments) == 1 and arguments[0] not in ("list", "cache"):
        arguments = [*arguments, "demo"]  # the text speaks of the command alone
    options = parse(arguments)
    for key in parse_overrides(getattr(options, "overrides", [])):
        assert key in KEYS, key
    named = (getattr(options, name, None) for name in ("selection", "shown", "table"))
    selection = next(filter(None, named), None)
    example = selection is None or selection.split("/")[0] in ("TABLE", "stripes", "mine")
    if not example:
        select(selection, options.scale)


@pytest.mark.parametrize("page", PAGES, ids=_NAMES)
def test_python_imports_what_there_is(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python" and not block.title:
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module or "")
                    assert all(hasattr(module, name.name) for name in node.names)


# Words that look like keys: options of the command line and of Flower, and other files' keys.
_OTHERS = {
    "client-cpus", "client-gpus", "client-resources-num-gpus", "final-weights-sha256",
    "flower-supernode", "label-distance", "mixed-code", "mixed-weights", "num-supernodes",
    "partition-id", "rates-from", "same-weights", "weights-command",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=_NAMES)
def test_keys_exist(page: Path) -> None:
    words = {*KEYS, *_OTHERS, *values(), *tables()}
    added = "".join(block.text for block in blocks(page) if block.title)
    for code in re.findall(r"`([^`\n]*)`", prose(page)):
        if assignment := re.fullmatch(r"([a-z-]+) = ([^{]*)", code):
            if assignment[1] not in _OTHERS and assignment[2] not in added:
                RunConfig.from_mapping(tomllib.loads(code))
        elif re.fullmatch(r"[a-z]+(-[a-z]+)+", code):
            assert code in words, code
    for block in blocks(page):
        about = tomllib.loads(block.text) if block.language == "toml" else {}
        labels = [axis.values() for axis in about.get("axes", {}).values()]
        for keys in [about.get("base", {}), *itertools.chain(*labels)]:
            assert set(keys) <= set(KEYS)


def values() -> set[str]:
    """Return the words that keys may have as their values."""
    return {option for key in KEYS.values() for option in key.options}


def test_the_table_of_keys_is_up_to_date() -> None:
    assert filled(PAGE.read_text()) == PAGE.read_text(), "run make docs"
