"""Eager PyTorch definitions of every op and method: the oracle and the baseline.

Written as the papers state them, one product after another, in the dtype of the input; feed float64
for an oracle.
"""

from semobridge_ext.reference.blending import blend_logits, class_weights, prototypes
from semobridge_ext.reference.bridging import bridge, pinv
from semobridge_ext.reference.frozen_tower import tower_features
from semobridge_ext.reference.inversion import Inversion, oti, ovi
from semobridge_ext.reference.project_normalize import project_normalize, scale_rows
from semobridge_ext.reference.retrieval_metrics import retrieval_metrics
from semobridge_ext.reference.support_logits import support_logits
from semobridge_ext.reference.topk import topk

__all__ = [
    "Inversion",
    "blend_logits",
    "bridge",
    "class_weights",
    "oti",
    "ovi",
    "pinv",
    "project_normalize",
    "prototypes",
    "retrieval_metrics",
    "scale_rows",
    "support_logits",
    "topk",
    "tower_features",
]
