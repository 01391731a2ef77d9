"""What was learnt: task vectors, and what a model gets right by class and by client.

Task vectors have arithmetic, measurements (`task_arithmetic`) and figures (`task_figures`).
"""

from fedta_app.analysis.classification import (
    Evaluation,
    class_accuracy,
    client_accuracy,
    evaluate_run,
)
from fedta_app.analysis.matrices import (
    MaskOverlap,
    cosine_matrix,
    mask_overlap_matrix,
    sign_conflict_matrix,
)
from fedta_app.analysis.task_vectors import TaskVector, block_density, disentanglement_error

__all__ = [
    "Evaluation",
    "MaskOverlap",
    "TaskVector",
    "block_density",
    "class_accuracy",
    "client_accuracy",
    "cosine_matrix",
    "disentanglement_error",
    "evaluate_run",
    "mask_overlap_matrix",
    "sign_conflict_matrix",
]
