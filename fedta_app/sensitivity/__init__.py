"""The sensitivity of every weight: the diagonal of the Fisher information."""

from fedta_app.sensitivity.fisher import fisher_diagonal
from fedta_app.sensitivity.layers import UnsupportedModelError

__all__ = ["UnsupportedModelError", "fisher_diagonal"]
