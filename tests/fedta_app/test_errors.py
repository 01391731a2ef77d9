"""Sentences of errors, as far as several of them have to agree."""

import re
from pathlib import Path

import fedta_app
from fedta_app.errors import NO_RESUME

PACKAGE = Path(fedta_app.__file__).parent


def test_advice_to_start_over_names_the_key_and_the_option() -> None:
    for source in PACKAGE.rglob("*.py"):
        bare = re.search(r"(with|set|or)[\s\"f]+resume = false", source.read_text())
        assert not bare, f"{source.name}: write NO_RESUME"


def test_the_option_is_one_that_the_command_line_takes() -> None:
    from experiments.arguments import parse

    assert "--no-resume" in NO_RESUME and "resume = false" in NO_RESUME
    assert parse(["run", "demo", "--no-resume"]).resume is False
