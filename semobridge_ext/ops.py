"""The operators: one op, one file. Methods are built on these."""

from semobridge_ext._engines.tower_descent.cpu import FrozenTower, PackedTower
from semobridge_ext._engines.tower_descent.step import LaunchedTower
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext._ops.project_normalize.cpu import Projection
from semobridge_ext._ops.project_normalize.op import project_normalize
from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._ops.symmetric_kl.op import symmetric_kl
from semobridge_ext._ops.topk.op import TopK, topk
from semobridge_ext.retrieval.metrics import retrieval_metrics

__all__ = [
    "FrozenTower",
    "LaunchedTower",
    "LaunchedWeights",
    "PackedTower",
    "Projection",
    "TopK",
    "project_normalize",
    "retrieval_metrics",
    "support_logits",
    "symmetric_kl",
    "topk",
]
