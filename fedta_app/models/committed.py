"""Where the weights that come with fedta are, also in a copy of the app that Flower made."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

FOLDER = Path(__file__).parents[1] / "weights"


def committed_weights(name: str) -> Path | None:
    """Return the path of `<name>.safetensors`, or None where fedta has no such weights.

    `flwr run` packs .py, .toml, .json and .md files only: in its copy of the app the file is
    missing, and the one of the installed package is used.
    """
    file = f"{name}.safetensors"
    candidates = [FOLDER / file, *(folder / file for folder in _installed())]
    return next((path for path in candidates if path.is_file()), None)


def _installed() -> list[Path]:
    try:
        package = distribution("fedta")
    except PackageNotFoundError:
        return []
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    folders = [Path(str(package.locate_file("fedta_app/weights")))]
    if origin.get("dir_info", {}).get("editable"):
        folders.append(Path(url2pathname(urlparse(origin["url"]).path)) / "fedta_app/weights")
    return folders
