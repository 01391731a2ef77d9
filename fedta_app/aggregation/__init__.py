"""Means of client updates, and the step that applies them."""

from fedta_app.aggregation.means import (
    apply_update,
    masked_mean_update,
    mean_update,
    sign_elected_mean_update,
)

__all__ = ["apply_update", "masked_mean_update", "mean_update", "sign_elected_mean_update"]
