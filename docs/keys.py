"""Write the table of all keys into configuration.md: `python -m docs.keys`, run by `make docs`."""

import re
import tomllib
from pathlib import Path

from fedta_app.config import KEYS

PAGE = Path(__file__).with_name("configuration.md")
PYPROJECT = PAGE.parents[1] / "pyproject.toml"
BEGIN, END = "<!-- keys: begin, written by `make docs` -->\n", "<!-- keys: end -->"


def table() -> str:
    """Return a Markdown table with a row for each key."""
    lines = PYPROJECT.read_text().partition("[tool.flwr.app.config]")[2].splitlines()
    reasons = dict(re.findall(r"^([a-z-]+) = .*?\s# (.*)$", "\n".join(lines), re.MULTILINE))
    defaults = tomllib.loads(PYPROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    rows = [
        f"| `{key}` | `{_toml(defaults[key])}` | {entry.metadata['allowed']} | {_escaped(reasons[key])} |"
        for key, entry in KEYS.items()
    ]
    return "\n".join(["| key | default | allowed | |", "|---|---|---|---|", *rows, ""])


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")  # <name> would be taken for HTML


def filled(page: str) -> str:
    """Return the page with the present table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
