"""Small images of printed letters, drawn on the fly: training data of `pretraining.digits`.

Letters A-Z and a-z in 22 of the fonts that matplotlib carries (DejaVu, STIX, Computer Modern),
distorted, thickened and averaged from 32x32 to 8x8 pixels of 17 grey levels, the format of
scikit-learn's digits. No digit is ever drawn. Letters whose capital has the same shape share one
class, as in EMNIST "merge" (Cohen et al., "EMNIST: Extending MNIST to Handwritten Letters",
IJCNN 2017): 37 classes.
"""

import string
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from experiments.pretraining.crops import uniform
from fedta_app.errors import ConfigError

_STYLES = ("", "-Bold", "-Oblique", "-BoldOblique")
_SERIF_STYLES = ("", "-Bold", "-Italic", "-BoldItalic")
FONTS = (
    *(f"DejaVuSans{style}" for style in _STYLES),
    *(f"DejaVuSansMono{style}" for style in _STYLES),
    *(f"DejaVuSerif{style}" for style in _SERIF_STYLES),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
HELD_OUT_FONTS = ("DejaVuSansMono-BoldOblique", "STIXGeneralItalic", "cmr10")
_SAME_SHAPE = "cijklmopsuvwxyz"
LETTERS = string.ascii_uppercase + string.ascii_lowercase
CLASSES = "".join(letter for letter in LETTERS if letter not in _SAME_SHAPE)
_GLYPH = 64  # pixels per side of a glyph before it is distorted


def draw_glyphs(fonts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Draw every letter in every font, filling its box.

    Returns
    -------
    glyphs : float32 Tensor of shape (fonts * 52, 1, 64, 64)
        1 for ink, 0 for paper.
    labels : int64 Tensor of shape (fonts * 52,)
        Positions in `CLASSES`.

    Raises
    ------
    ConfigError
        When matplotlib lacks a font; since 3.11 it has all of `FONTS`.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    glyphs, labels = [], []
    for font in fonts:
        file = folder / f"{font}.ttf"
        if not file.is_file():
            raise ConfigError(
                f"the letters need matplotlib 3.11 or newer: {matplotlib.__version__} has no {font}"
            )
        face = ImageFont.truetype(str(file), _GLYPH)  # Pillow 10.0 takes no Path
        for letter in LETTERS:
            glyphs.append(torch.from_numpy(_draw(letter, face)))
            name = letter.upper() if letter in _SAME_SHAPE else letter
            labels.append(CLASSES.index(name))
    return torch.stack(glyphs).unsqueeze(1), torch.tensor(labels)


def _draw(letter: str, face: ImageFont.FreeTypeFont) -> np.ndarray:
    canvas = Image.new("L", (4 * _GLYPH, 4 * _GLYPH))
    ImageDraw.Draw(canvas).text((_GLYPH, _GLYPH), letter, font=face, fill=255)
    box = canvas.getbbox()
    assert box is not None, letter
    width, height = box[2] - box[0], box[3] - box[1]
    side = max(width, height)
    left, top = box[0] - (side - width) // 2, box[1] - (side - height) // 2
    square = canvas.crop((left, top, left + side, top + side))
    small = square.resize((_GLYPH, _GLYPH), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32) / 255


def distort(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Turn glyphs into 8x8 images, each with its own slant, size, wobble and stroke width.

    Parameters
    ----------
    glyphs : float32 Tensor of shape (B, 1, 64, 64)
    generator : torch.Generator

    Returns
    -------
    uint8 Tensor of shape (B, 1, 8, 8)
        17 grey levels from 0 to 255.
    """
    grid = F.affine_grid(_affine(len(glyphs), generator), [len(glyphs), 1, 32, 32], False)
    bumps = torch.randn(len(glyphs), 2, 4, 4, generator=generator) * 0.09
    wobble = F.interpolate(bumps, size=(32, 32), mode="bicubic", align_corners=False)
    ink = F.grid_sample(glyphs, grid + wobble.permute(0, 2, 3, 1), align_corners=False)
    ink = _thicken(ink, generator)
    levels = (F.avg_pool2d(ink, 4) * 16).round()
    return (levels * 255 / 16).round().to(torch.uint8)


def _affine(count: int, generator: torch.Generator) -> Tensor:
    """Return random maps (count, 2, 3) from image to glyph: turn, slant, stretch and shift."""
    bounds = (
        (-0.25, 0.25), (-0.35, 0.35), (0.95, 1.6), (0.95, 1.25), (-0.1, 0.1), (-0.1, 0.1)
    )  # fmt: skip
    turn, slant, wide, tall, right, down = (uniform(count, *pair, generator) for pair in bounds)
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    shear = torch.stack([wide, slant, torch.zeros(count), tall], 1).view(-1, 2, 2)
    shift = torch.stack([right, down], 1).unsqueeze(2)
    return torch.cat([rotation @ shear, shift], dim=2)


def _thicken(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image a random part of the way to a thinner or a thicker version of itself."""
    amount = 2.3 * torch.rand(len(ink), 1, 1, 1, generator=generator) - 0.3
    thick = F.max_pool2d(ink, 3, 1, 1)
    thicker = F.max_pool2d(thick, 3, 1, 1)
    thin = -F.max_pool2d(-ink, 3, 1, 1)
    inner = torch.lerp(ink, thick, amount.clamp(0, 1))
    outer = torch.lerp(inner, thicker, (amount - 1).clamp(0, 1))
    return torch.lerp(outer, thin, (-amount).clamp(0, 1))
