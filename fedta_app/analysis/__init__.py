"""Task vectors: arithmetic, measurements (`task_arithmetic`) and figures (`task_figures`)."""

from fedta_app.analysis.matrices import (
    MaskOverlap,
    cosine_matrix,
    mask_overlap_matrix,
    sign_conflict_matrix,
)
from fedta_app.analysis.task_vectors import TaskVector, block_density, disentanglement_error

__all__ = [
    "MaskOverlap",
    "TaskVector",
    "block_density",
    "cosine_matrix",
    "disentanglement_error",
    "mask_overlap_matrix",
    "sign_conflict_matrix",
]
