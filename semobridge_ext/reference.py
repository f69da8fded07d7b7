"""Eager PyTorch definitions of every op and method: the oracle and the baseline.

Written as the papers state them, one product after another, in the dtype of the input; feed float64
for an oracle.
"""

from semobridge_ext._engines.tower_descent.reference import tower_features
from semobridge_ext._ops.blend_logits.reference import blend_logits, class_weights, prototypes
from semobridge_ext._ops.project_normalize.reference import project_normalize, scale_rows
from semobridge_ext._ops.support_logits.reference import support_logits
from semobridge_ext._ops.symmetric_kl.reference import symmetric_kl
from semobridge_ext._ops.topk.reference import topk
from semobridge_ext.bridging.reference import bridge, pinv
from semobridge_ext.clip.reference import encode_text
from semobridge_ext.discovery.reference import (
    FilterResult,
    GCDTerms,
    gcd_accuracy,
    gcd_losses,
    spectral_filter,
)
from semobridge_ext.inversion.reference import oti, ovi
from semobridge_ext.inversion.spec import Inversion
from semobridge_ext.retrieval.reference import retrieval_metrics

__all__ = [
    "FilterResult",
    "GCDTerms",
    "Inversion",
    "blend_logits",
    "bridge",
    "class_weights",
    "encode_text",
    "gcd_accuracy",
    "gcd_losses",
    "oti",
    "ovi",
    "pinv",
    "project_normalize",
    "prototypes",
    "retrieval_metrics",
    "scale_rows",
    "spectral_filter",
    "support_logits",
    "symmetric_kl",
    "topk",
    "tower_features",
]
