"""A heat map of which class is taken for which."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedta_app.plotting import heat_map, new_figure, numbers, save_figure, use_integers

_MOST_NUMBERS = 12  # classes; with more, numbers do not fit their cells


def save_confusion(path: Path, confusion: npt.NDArray[np.int64], title: str) -> None:
    """Save a confusion matrix as PNG: of each true class, which share is taken for which class.

    With more than 12 classes no numbers are written, and the colours go by the square root of the
    share, because rare mistakes could not be told from none.

    Parameters
    ----------
    confusion : int64 array of shape (C, C)
        Images by true class (rows) and predicted class. A class without images is grey.
    """
    from matplotlib.colors import PowerNorm

    images = confusion.sum(axis=1, keepdims=True)
    shares = np.where(images > 0, confusion / np.maximum(images, 1), np.nan)
    few = len(shares) <= _MOST_NUMBERS
    texts = numbers(np.where(shares > 0, shares, np.nan), 2) if few else {}
    figure = new_figure(6.4, 5.6)
    axis = figure.add_subplot()
    image = heat_map(axis, shares, colours="YlGnBu", limits=(0.0, 1.0), texts=texts, square=True)
    if not few:
        image.set_norm(PowerNorm(0.5, vmin=0.0, vmax=1.0))
    use_integers(axis.xaxis, _MOST_NUMBERS)
    use_integers(axis.yaxis, _MOST_NUMBERS)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title, fontsize="small")
    figure.colorbar(image, ax=axis, label="share of the true class")
    save_figure(path, figure)
