"""Few-shot classification: SeMoBridge in closed form and trained, cache models, plain baselines."""

from semobridge_ext.fewshot.baselines import LDA, NearestClassMean, ZeroShot
from semobridge_ext.fewshot.caches import APE, TipAdapter, TipAdapterF
from semobridge_ext.fewshot.classifier import SeMoBridgeClassifier
from semobridge_ext.fewshot.training import SeMoBridgeT

__all__ = [
    "APE",
    "LDA",
    "NearestClassMean",
    "SeMoBridgeClassifier",
    "SeMoBridgeT",
    "TipAdapter",
    "TipAdapterF",
    "ZeroShot",
]
