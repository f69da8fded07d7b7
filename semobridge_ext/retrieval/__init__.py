"""Retrieval metrics."""

from semobridge_ext.retrieval.metrics import retrieval_metrics
from semobridge_ext.retrieval.revisited import revisited_metrics

__all__ = ["retrieval_metrics", "revisited_metrics"]
