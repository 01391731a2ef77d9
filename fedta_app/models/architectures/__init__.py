"""The networks of this repository, beside those of timm, one file each.

A new network is a file in this folder that defines an
`fedta_app.models.architectures.base.Architecture`; nothing else needs to know of it. Each network
offers timm's interface: ``forward_features``, ``forward_head(x, pre_logits=...)`` and
``get_classifier``.
"""

from fedta_app.discovery import discover
from fedta_app.models.architectures.base import Architecture

ARCHITECTURES = discover(__name__, Architecture)
