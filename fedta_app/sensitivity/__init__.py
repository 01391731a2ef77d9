"""The sensitivity of every weight: the diagonal of the Fisher information."""

from fedta_app.sensitivity.fisher import fisher_diagonal, fisher_into
from fedta_app.sensitivity.paths import Trusted
from fedta_app.sensitivity.state import evaluation_mode

__all__ = ["Trusted", "evaluation_mode", "fisher_diagonal", "fisher_into"]
