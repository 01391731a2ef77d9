"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "fedta_app": set(),
    "engine": {"fedta_app"},
    "client_app": {"fedta_app", "engine"},
    "strategies": {"fedta_app", "engine"},
    "server_app": {"fedta_app", "engine", "strategies"},
    "experiments": {"fedta_app", "engine", "client_app", "strategies", "server_app"},
}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        wrong = (imported_packages(path) & set(ALLOWED)) - ALLOWED[room] - {room}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_the_method_is_free_of_flower() -> None:
    for path in (ROOT / "fedta_app").rglob("*.py"):
        assert not imported_packages(path) & {"flwr", "ray"}, path
