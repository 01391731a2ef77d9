"""Gradient masks: rules, calibration in rounds, set operations."""

from fedta_app.masks.building import MASK_RULES, build_mask, calibrate_mask, next_mask

__all__ = ["MASK_RULES", "build_mask", "calibrate_mask", "next_mask"]
