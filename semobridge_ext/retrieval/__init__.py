"""Galleries and retrieval metrics."""

from semobridge_ext.retrieval.gallery import Gallery
from semobridge_ext.retrieval.metrics import retrieval_metrics
from semobridge_ext.retrieval.range_search import RangeHits
from semobridge_ext.retrieval.revisited import revisited_metrics
from semobridge_ext.retrieval.shares import group_shares

__all__ = ["Gallery", "RangeHits", "group_shares", "retrieval_metrics", "revisited_metrics"]
