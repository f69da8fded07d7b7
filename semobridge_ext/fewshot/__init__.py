"""Few-shot classification: SeMoBridge in closed form and trained, cache models, plain baselines."""

from semobridge_ext.fewshot.classifier import SeMoBridgeClassifier
from semobridge_ext.fewshot.training import SeMoBridgeT

__all__ = ["SeMoBridgeClassifier", "SeMoBridgeT"]
