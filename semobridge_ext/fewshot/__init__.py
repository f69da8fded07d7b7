"""Few-shot classification: SeMoBridge in closed form and trained, cache models, plain baselines."""

from semobridge_ext.fewshot.baselines import LDA, NearestClassMean, ZeroShot
from semobridge_ext.fewshot.caches import APE, TipAdapter, TipAdapterF
from semobridge_ext.fewshot.classifier import SeMoBridgeClassifier
from semobridge_ext.fewshot.gda import GDA
from semobridge_ext.fewshot.linear_probe import LPPlusPlus
from semobridge_ext.fewshot.proker import ProKeR
from semobridge_ext.fewshot.prolip import ProLIP
from semobridge_ext.fewshot.training import SeMoBridgeT

__all__ = [
    "APE",
    "GDA",
    "LDA",
    "LPPlusPlus",
    "NearestClassMean",
    "ProKeR",
    "ProLIP",
    "SeMoBridgeClassifier",
    "SeMoBridgeT",
    "TipAdapter",
    "TipAdapterF",
    "ZeroShot",
]
