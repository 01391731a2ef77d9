"""The sensitivity of every weight: the diagonal of the Fisher information."""

from fedta_app.sensitivity.fisher import evaluation_mode, fisher_diagonal, fisher_into
from fedta_app.sensitivity.layers import UnsupportedModelError

__all__ = ["UnsupportedModelError", "evaluation_mode", "fisher_diagonal", "fisher_into"]
