"""The networks of this repository, one file each.

To add a network, add a file to this folder that defines an
`fedta_app.models.architectures.base.Architecture`. Each network has timm's interface:
``forward_features``, ``forward_head(x, pre_logits=...)`` and ``get_classifier``.
"""

from fedta_app.discovery import discover
from fedta_app.models.architectures.base import Architecture

ARCHITECTURES = discover(__name__, Architecture)
