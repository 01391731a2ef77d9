"""Write the table of all keys into configuration.md: `python -m docs.keys`, run by `make docs`."""

from pathlib import Path

from fedta_app.config import KEYS
from fedta_app.entry import markdown_table

PAGE = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- keys: begin, written by `make docs` -->\n", "<!-- keys: end -->"


def filled(page: str) -> str:
    """Return the page with the present table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{markdown_table(KEYS.values())}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
