"""SGD with momentum that trains only the entries of a mask."""

from fedta_app.optim.effective_steps import norm_of_steps
from fedta_app.optim.sparse_sgdm import SparseSGDM

__all__ = ["SparseSGDM", "norm_of_steps"]
