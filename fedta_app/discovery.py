"""Objects that are found because their file lies in a package: mask rules, for example."""

import importlib
import pkgutil
from typing import Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Found = TypeVar("Found", bound=_Named)


def discover(package: str, kind: type[Found]) -> dict[str, Found]:
    """Return the objects of a type that the modules of a package define, by their `name`.

    Every module of the package is imported, in the order of the file names.

    Raises
    ------
    ValueError
        If two different objects have the same name.
    """
    found: dict[str, Found] = {}
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, kind) and found.setdefault(value.name, value) is not value:
                raise ValueError(f"{module.__name__} defines {value.name!r}, which exists already")
    return found
