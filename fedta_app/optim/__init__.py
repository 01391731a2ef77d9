"""SGD with momentum that trains only the entries of a mask."""

from fedta_app.optim.sparse_sgdm import SparseSGDM

__all__ = ["SparseSGDM"]
