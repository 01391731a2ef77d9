"""The examples in docstrings are run, module by module."""

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("fedta_app", "engine", "strategies")


def modules() -> list[str]:
    return [
        info.name
        for package in PACKAGES
        for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    ]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    examples = [test for test in found if test.examples]
    if not examples:
        pytest.skip("no examples")
    runner = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    report: list[str] = []
    for test in examples:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
