"""Who may import whom: rooms of the repository, of fedta_app and of experiments."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each room may import those to its left, and what stands in its own braces not at all.
ORDER: list[set[str]] = [
    {"fedta_app.errors"},
    {
        "fedta_app.seeding", "fedta_app.files", "fedta_app.discovery", "fedta_app.progress",
        "fedta_app.spelling",
    },
    {"fedta_app.hashed_files"},
    {"fedta_app.vectors", "fedta_app.plotting", "fedta_app.cache"},
    {"fedta_app.device"},
    {
        "fedta_app.data", "fedta_app.partition", "fedta_app.models", "fedta_app.sensitivity",
        "fedta_app.optim", "fedta_app.heads", "fedta_app.aggregation", "fedta_app.secure",
    },
    {"fedta_app.masks", "fedta_app.algorithms"},
    {"fedta_app.entry"},
    {"fedta_app.conditions"},
    {"fedta_app.keys"},
    {"fedta_app.combinations"},
    {"fedta_app.config"},
    {"fedta_app.pace"},
    {"fedta_app.runs"},
    {"fedta_app.finished"},
    {"fedta_app.training"},
    {"fedta_app.analysis", "fedta_app.centralized"},
    {"engine"},
    {"client_app", "strategies"},
    {"server_app"},
    {"experiments", "experiments.exit_status"},
    {"experiments.running"},
    {"experiments.pretraining", "experiments.studies"},
    {"experiments.reporting"},
    {"experiments.arguments"},
    {"experiments.commands"},
    {"experiments.__main__"},
]  # fmt: skip
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
PACKAGES = {room.split(".")[0] for room in PLACE}
# client_app and server_app never meet, but where the runner puts them into one process.
APART = [("client_app", "server_app"), ("client_app", "strategies")]
MOST_FILES = 14


def room_of(module: str) -> str:
    """Return the room that a module belongs to: the longest name in the order that it has."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in (2, 1)]
    return next((name for name in names if name in PLACE), parts[0])


def modules() -> Iterator[tuple[str, Path]]:
    for package in sorted(PACKAGES):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, path


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


MODULES = dict(modules())


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    own = room_of(module)
    assert own in PLACE or module in PACKAGES, f"{module} is in no room of the order"
    for name in imported(MODULES[module]):
        other = room_of(name)
        if name.split(".")[0] not in PACKAGES or other == own:
            continue
        assert other in PLACE, f"{module} imports {name}, which is in no room of the order"
        assert PLACE[other] < PLACE[own], f"{module} imports {name}"
        assert (own, other) not in APART and (other, own) not in APART, f"{module} imports {name}"


def test_the_method_is_free_of_flower() -> None:
    for module, path in MODULES.items():
        if module.startswith("fedta_app"):
            assert not {name.split(".")[0] for name in imported(path)} & {"flwr", "ray"}, path


def test_a_room_is_what_one_person_keeps_in_mind() -> None:
    folders: dict[Path, int] = {}
    for path in [*MODULES.values(), *(ROOT / "benchmarks").rglob("*.py")]:
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
        lines = path.read_text().count("\n")
        assert lines <= 300, f"{path.relative_to(ROOT)} has {lines} lines"
    crowded = {str(folder): number for folder, number in folders.items() if number > MOST_FILES}
    assert not crowded


def test_notebooks_import_experiments_only() -> None:
    for path in (ROOT / "results").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for line in "".join(cell["source"]).splitlines():
                words = line.split()
                if cell["cell_type"] == "code" and words[:1] in (["import"], ["from"]):
                    package = words[1].split(".")[0]
                    assert package == "experiments" or package not in PACKAGES, f"{path}: {line}"
