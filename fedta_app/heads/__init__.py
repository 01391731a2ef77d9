"""Classification heads in closed form."""

from fedta_app.heads.ridge import RidgeStatistics

__all__ = ["RidgeStatistics"]
