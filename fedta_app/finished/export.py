"""The model of a run as a file that loads without the run, with the Python that loads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedta_app.data.folder import FOLDER as IMAGE_FOLDER
from fedta_app.errors import RunError
from fedta_app.files import expanded, write_atomically
from fedta_app.finished.model_card import model_card
from fedta_app.finished.reading import Run
from fedta_app.models.architectures import ARCHITECTURES
from fedta_app.models.names import timm_keywords
from fedta_app.runs.finished_model import FOLDER

_PREPROCESS = """\
MEAN = torch.tensor({mean}).view(-1, 1, 1)
STD = torch.tensor({std}).view(-1, 1, 1)


def preprocess(images):
    \"\"\"Return the inputs for uint8 images (B, {channels}, height, width).\"\"\"
    inputs = (images.float() / 255 - MEAN) / STD
    if inputs.shape[2:] != ({size}, {size}):
        inputs = torch.nn.functional.interpolate(
            inputs, ({size}, {size}), mode="bicubic", antialias=True
        )
    return inputs
"""

# As `fedta_app.data.decoding.decode` makes the images that such a model is trained on.
_PREPROCESS_FILES = """\
from PIL import Image, ImageOps
from torchvision.transforms.functional import pil_to_tensor

MEAN = torch.tensor({mean}).view(-1, 1, 1)
STD = torch.tensor({std}).view(-1, 1, 1)


def preprocess(files):
    \"\"\"Return the inputs for image files of 8 bits: upright, square, resized, on white.\"\"\"
    images = []
    for file in files:
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
        image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)
        images.append(pil_to_tensor(image))
    return (torch.stack(images).float() / 255 - MEAN) / STD
"""

_PREPROCESS_TEXT = """\
ALPHABET = {alphabet!r}


def preprocess(texts):
    \"\"\"Return the inputs for texts of {channels} characters, whose next one is meant.\"\"\"
    return torch.tensor([[ALPHABET.index(character) for character in text] for text in texts])
"""


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes
    ----------
    file : Path
        The weights, in safetensors.
    card : Path
        The model card, in Markdown.
    library : str
        What the model is loaded with: "timm" or "fedta_app.models".
    code : str
        The Python that loads it and makes its inputs.
    """

    file: Path
    card: Path
    library: str
    code: str


def export_run(run: Run, file: Path, *, weights: str = "last") -> Export:
    """Copy a model of a finished run to a file, with a model card beside it.

    Parameters
    ----------
    file : Path
        Ends in .safetensors and does not exist yet; the card has the same name and ends in .md.
    weights : {"last", "best"}
        After the last round, or of the round with the highest validation accuracy.

    Raises
    ------
    RunError
        When the run did not keep such weights, or one of the files exists.
    ConfigError
        When the file is in somebody's home who has none.
    """
    file = expanded(file, f"FILE = {str(file)!r}")
    card = file.with_suffix(".md")
    if file.suffix != ".safetensors":
        raise RunError(f"{file} is not allowed: the name of the file ends in .safetensors")
    for path in (file, card):
        if path.exists():
            raise RunError(f"{path} exists already: choose another name, or delete it")
    kept = run.kept(weights)
    library = library_of(kept.facts["model"])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (run.path / FOLDER / f"{weights}.safetensors").read_bytes())
    own, here = (
        loading_code(kept.facts["model"], name, of_files=run.config.dataset == IMAGE_FOLDER)
        for name in (file.name, str(file))
    )
    write_atomically(card, model_card(run, kept, library=library, code=own))
    return Export(file, card, library, here)


def library_of(model: dict[str, Any]) -> str:
    """Return what a model is loaded with, from the facts of the model: see `Export`."""
    return "fedta_app.models" if model["name"] in ARCHITECTURES else "timm"


def loading_code(model: dict[str, Any], file: str, *, of_files: bool = False) -> str:
    """Return the Python that loads a model from a file, and makes its inputs of images or text.

    Parameters
    ----------
    model : dict
        The facts of the model: `kept(...).facts["model"]` of a run.
    of_files : bool
        Whether the inputs are made of image files, as for a run on a folder, not of tensors.
    """
    size, classes, channels = model["image-size"], model["classes"], model["channels"]
    if library_of(model) == "timm":
        keywords = timm_keywords(model["name"], size, classes, channels)
        options = ", ".join(f"{key}={value}" for key, value in keywords.items())
        first = ["import timm", "import torch", "from safetensors.torch import load_file", ""]
        make = [f'model = timm.create_model("{model["name"]}", {options})']
    else:
        first = [
            "import torch",
            "from fedta_app.models import build_model",
            "from safetensors.torch import load_file",
            "",
        ]
        make = [
            "model = build_model(",
            f'    "{model["name"]}", weights="random", image_size={size}, num_classes={classes},',
            f"    in_channels={channels}, seed=0,",
            ").model",
        ]
    load = [f"model.load_state_dict(load_file({file!r}))", "model.eval()", ""]
    if alphabet := model.get("alphabet"):
        inputs = _PREPROCESS_TEXT.format(alphabet=alphabet, channels=channels)
    else:
        inputs = (_PREPROCESS_FILES if of_files else _PREPROCESS).format(
            mean=model["mean"], std=model["std"], size=size, channels=channels
        )
    return "\n".join([*first, *make, *load, inputs])
