"""How Sphinx builds these pages: `make docs` writes build/docs/index.html, without a network.

The source folder is the repository, so that pages may link to results and to each other as they do
on GitHub. The pages of the API are written here, one for each package that says in `__all__` what
is public: a package that gains or loses an `__all__` needs no change of the documentation.
"""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "api"  # written at every build, ignored by git
NO_API = {"benchmarks", "build", "docs", "tests"}

project = "fedta"
author = "the authors of fedta"
copyright = "the authors of fedta, Apache-2.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",  # the browser needs a network to draw equations; the build does not
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**",
    "results/README.md",
    "results/*/README.md",
    "results/*/report.md",
]
exclude_patterns = [".*", "README.md", "build", "benchmarks", "experiments", "fedta_app", "tests"]
# Links are checked by tests/docs; results/README.md has one to a folder, which Sphinx knows not.
suppress_warnings = ["myst.xref_missing"]

highlight_language = "text"  # of blocks that name none: commands and their output
html_theme = "furo"
html_title = "fedta"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["tables.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "redirect.html"}  # from the top of build/docs to the first page

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links such as page.md#section, as GitHub has them

default_role = "py:obj"  # `name` in a docstring is a link where there is such an object
autodoc_member_order = "bysource"  # which is the order of `__all__`
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True


def public_packages() -> dict[str, str]:
    """Return the first line of the docstring of every package with an `__all__`, by its name."""
    found = {}
    for path in sorted(ROOT.rglob("__init__.py")):
        parts = path.parent.relative_to(ROOT).parts
        if parts[0].startswith(".") or parts[0] in NO_API:
            continue
        module = ast.parse(path.read_text())
        names = [ast.unparse(n.targets[0]) for n in module.body if isinstance(n, ast.Assign)]
        if "__all__" in names:
            found[".".join(parts)] = (ast.get_docstring(module) or "").split("\n")[0]
    return found


def write_api_pages() -> None:
    """Write a page for each public package, and one that lists them."""
    packages = public_packages()
    pages = {
        name: f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"
        for name in packages
    }
    pages["index"] = "\n".join(
        [
            "API", "===", "",
            "The public names of each package, from their docstrings. A package exports in",
            "``__all__`` what you may rely on; the modules inside it may change without notice.",
            "", *(f":doc:`{name}`\n   {line}\n" for name, line in packages.items()),
            ".. toctree::", "   :hidden:", "", *(f"   {name}" for name in packages), "",
        ]
    )  # fmt: skip
    API.mkdir(exist_ok=True)
    for old in API.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = API / f"{name}.rst"
        if not path.exists() or path.read_text() != text:  # else Sphinx would read it again
            path.write_text(text)


def skip_field_alias(app: object, what: str, name: str, member: object, *_: object) -> bool | None:
    """Leave out the fields of named tuples: the class's own docstring describes them."""
    alias = str(getattr(member, "__doc__", "")).startswith("Alias for field number")
    return True if alias else None


def setup(app: Any) -> None:
    """Write the pages of the API before Sphinx looks for pages."""
    write_api_pages()
    app.connect("autodoc-skip-member", skip_field_alias)
