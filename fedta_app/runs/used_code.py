"""Which source files decide what a run computes.

Mask rules, algorithms, data sets and models are one file each, in folders where they are found by
themselves. A run uses the files of those that its configuration names; all other code is shared.
Two runs are of one version when their shared code is the same, and so is the file of every rule,
algorithm, data set and model that both use: adding a file to one of the folders changes no run that
was there before.
"""

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedta_app.algorithms.base import REGISTRY
from fedta_app.config import KEYS, RunConfig
from fedta_app.data.sets import DATASETS
from fedta_app.masks import rule_named
from fedta_app.models.architectures import ARCHITECTURES

ROOMS = ("fedta_app", "engine", "client_app", "strategies", "server_app")  # what Flower packs
SHARED = "shared"
# Packages whose modules are used only where the value of a key names what they define.
_UNITS = {
    "mask-rule": "fedta_app.masks.rules",
    "strategy": "fedta_app.algorithms",
    "dataset": "fedta_app.data.sets",
    "model": "fedta_app.models.architectures",
}
# An import of a unit writes the name of its folder, or a relative path.
_FOLDERS = "|".join(package.rpartition(".")[2] for package in _UNITS.values())
_NAMES_UNITS = re.compile(rf"\b({_FOLDERS})\b|\bfrom\s*\.".encode())

Sources = Mapping[str, bytes]  # contents of files by their path, such as fedta_app/config.py


def read_sources(root: Path) -> dict[str, bytes]:
    """Return the Python files of the app below a folder, sorted within each room."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for room in ROOMS
        for path in sorted((root / room).rglob("*.py"))
    }


def sources_sha256(sources: Sources, paths: Iterable[str] | None = None) -> str:
    """Return the sha256 (hexadecimal) of the names and contents of files, of all by default."""
    digest = hashlib.sha256()
    for path in sources if paths is None else paths:
        digest.update(path.encode() + b"\0" + sources[path] + b"\0")
    return digest.hexdigest()


def used_parts(config: RunConfig, sources: Sources) -> dict[str, list[str]]:
    """Return the files that a run uses, by part.

    Parts are "shared" and, where the configuration names something that has a file in one of the
    folders, "mask-rule <name>", "strategy <name>", "dataset <name>" and "model <name>". A file that
    such a file imports belongs to its part; one that shared code imports is shared.
    """
    units = {path for path in sources if _is_unit(path)}
    shared = _with_imports((path for path in sources if path not in units), sources, units)
    parts = {SHARED: [path for path in sources if path in shared]}
    for key, package in _UNITS.items():
        name = str(config.to_mapping()[key])
        unit = _unit(key, name) if KEYS[key].read_when.holds(config) else None
        if unit is not None:
            own = _with_imports(_defining(package, unit, sources), sources, units) - shared
            parts[f"{key} {name}"] = [path for path in sources if path in own]
    return {part: paths for part, paths in parts.items() if paths}


def _unit(key: str, name: str) -> Any:
    """Return the rule, algorithm, data set or model of a name, None where it has no file."""
    if key == "mask-rule":
        return None if name == "none" else rule_named(name)
    tables: dict[str, Mapping[str, Any]] = {
        "strategy": REGISTRY, "dataset": DATASETS, "model": ARCHITECTURES
    }  # fmt: skip
    return tables[key].get(name)


def _is_unit(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return name != "__init__.py" and folder.replace("/", ".") in _UNITS.values()


def _path(module: str) -> str:
    return module.replace(".", "/") + ".py"


def _defining(package: str, unit: Any, sources: Sources) -> set[str]:
    """Return the files in which an object is defined, not those that import it from there."""
    names = [
        f"{package}.{entry.name}" for entry in pkgutil.iter_modules(sys.modules[package].__path__)
    ]
    holders = {
        _path(name)
        for name in names
        if any(value is unit for value in vars(importlib.import_module(name)).values())
    } & sources.keys()
    return {path for path in holders if not holders & _imports(path, sources[path])}


def _with_imports(paths: Iterable[str], sources: Sources, units: set[str]) -> set[str]:
    """Return the files, and the unit files that they import, directly or through one another."""
    found = set(paths)
    waiting = list(found)
    while waiting:
        path = waiting.pop()
        new = (_imports(path, sources[path]) & units) - found
        found |= new
        waiting += new
    return found


@cache
def _imports(path: str, source: bytes) -> frozenset[str]:
    """Return the files that modules which a file imports would have, where units may be among them.

    Of a file that names no folder of units it is none: only a third of the code has to be parsed.
    """
    if not _NAMES_UNITS.search(source):
        return frozenset()
    package = path.rpartition("/")[0].replace("/", ".")
    return frozenset(map(_path, _imported_modules(ast.parse(source), package)))


def _imported_modules(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
