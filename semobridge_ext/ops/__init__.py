"""The operators: one op, one file. Methods are built on these."""

from semobridge_ext.ops.frozen_tower import FrozenTower, PackedTower
from semobridge_ext.ops.launch_weights import LaunchedWeights
from semobridge_ext.ops.launched_tower import LaunchedTower
from semobridge_ext.ops.project_normalize import project_normalize
from semobridge_ext.ops.projection import Projection
from semobridge_ext.ops.retrieval_metrics import retrieval_metrics
from semobridge_ext.ops.support_logits import support_logits
from semobridge_ext.ops.topk import TopK, topk

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
    "topk",
]
