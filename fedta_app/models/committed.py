"""Paths of the weights files that come with fedta."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from fedta_app.files import editable_checkout

FOLDER = Path(__file__).parents[1] / "weights"


def committed_weights(name: str) -> Path | None:
    """Return the path of `<name>.safetensors`, or None where fedta has no such weights.

    The copy of the app that `flwr run` makes has .py, .toml, .json and .md files only; there the
    file of the installed package is used.
    """
    file = f"{name}.safetensors"
    candidates = [FOLDER / file, *(folder / file for folder in _installed())]
    return next((path for path in candidates if path.is_file()), None)


def _installed() -> list[Path]:
    """Return the folders where the installed package may have its weights."""
    try:
        package = distribution("fedta")
    except PackageNotFoundError:
        return []
    folders = [Path(str(package.locate_file("fedta_app/weights")))]
    if checkout := editable_checkout():
        folders.append(checkout / "fedta_app/weights")
    return folders
