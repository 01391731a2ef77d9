import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedta_app.discovery import discover


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package `found_here` that can be imported."""
    folder = tmp_path / "found_here"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("found_here")]:
        del sys.modules[name]


def define(path: Path, *names: str) -> None:
    lines = [f"V{number} = SimpleNamespace(name={name!r})" for number, name in enumerate(names)]
    path.write_text("\n".join(["from types import SimpleNamespace", "OTHER = 3", *lines]))


def test_objects_of_the_type_are_found_in_the_order_of_the_files(package: Path) -> None:
    define(package / "b.py", "second", "third")
    define(package / "a.py", "first")
    (package / "c.py").write_text("from found_here.a import V0")  # the same object is no second one
    found = discover("found_here", SimpleNamespace)
    assert list(found) == ["first", "second", "third"]
    assert found["third"].name == "third"


def test_a_name_given_twice_is_refused(package: Path) -> None:
    define(package / "a.py", "first")
    define(package / "b.py", "first")
    with pytest.raises(ValueError, match=r"found_here\.b defines 'first', which exists already"):
        discover("found_here", SimpleNamespace)
