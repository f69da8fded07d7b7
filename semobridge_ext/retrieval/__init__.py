"""Galleries and retrieval metrics."""

from semobridge_ext.retrieval.gallery import Gallery
from semobridge_ext.retrieval.metrics import retrieval_metrics
from semobridge_ext.retrieval.revisited import revisited_metrics

__all__ = ["Gallery", "retrieval_metrics", "revisited_metrics"]
