"""What a run says of itself in summary.json."""

from typing import Any

from fedta_app.runs.provenance import device_name
from fedta_app.training.workspace import Workspace


def run_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what summary.json says of weights, data and device.

    The entries under "identity" must be the same when a run is resumed.
    """
    source = workspace.built.source
    return {
        "identity": {
            "data-sha256": workspace.data.digest,
            "weights-file-sha256": source.sha256,
            "parameters-sha256": workspace.weights.fingerprint,
        },
        "weights": {"kind": source.kind, "from": source.location, "pretrained": source.pretrained},
        "device": device_name(workspace.device),
        "kernels": workspace.kernels,
        "precision": workspace.precision,
        "trained-blocks": workspace.config.trained_blocks or "all",
        "warnings": list(workspace.built.warnings),
    }
