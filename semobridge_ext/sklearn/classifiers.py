"""The few-shot classifiers as scikit-learn's `ClassifierMixin` and `BaseEstimator`."""

from __future__ import annotations

from sklearn.base import BaseEstimator, ClassifierMixin

from semobridge_ext import fewshot
from semobridge_ext.sklearn.display import Displayed


class _Classifier(Displayed, ClassifierMixin, BaseEstimator):
    """What a classifier of this package lacks: the types, metadata routing and a view for notebooks."""


class SeMoBridgeClassifier(fewshot.SeMoBridgeClassifier, _Classifier):
    """``semobridge_ext.SeMoBridgeClassifier`` for scikit-learn: the closed form, blended with text."""


class SeMoBridgeT(fewshot.SeMoBridgeT, _Classifier):
    """``semobridge_ext.SeMoBridgeT`` for scikit-learn: the trained bridge."""


class TipAdapter(fewshot.TipAdapter, _Classifier):
    """``semobridge_ext.TipAdapter`` for scikit-learn: a cache of the shots beside the text."""


class TipAdapterF(fewshot.TipAdapterF, _Classifier):
    """``semobridge_ext.TipAdapterF`` for scikit-learn: a trained cache."""


class APE(fewshot.APE, _Classifier):
    """``semobridge_ext.APE`` for scikit-learn: a cache of refined channels."""


class APET(fewshot.APET, _Classifier):
    """``semobridge_ext.APET`` for scikit-learn: its trained form."""


class GDA(fewshot.GDA, _Classifier):
    """``semobridge_ext.GDA`` for scikit-learn: Gaussians beside the text."""


class ProKeR(fewshot.ProKeR, _Classifier):
    """``semobridge_ext.ProKeR`` for scikit-learn: kernel ridge regression beside the text."""


class LPPlusPlus(fewshot.LPPlusPlus, _Classifier):
    """``semobridge_ext.LPPlusPlus`` for scikit-learn: a linear probe beside the text."""


class ProLIP(fewshot.ProLIP, _Classifier):
    """``semobridge_ext.ProLIP`` for scikit-learn: a trained vision projection."""


class ZeroShot(fewshot.ZeroShot, _Classifier):
    """``semobridge_ext.ZeroShot`` for scikit-learn: the nearest text."""


class NearestClassMean(fewshot.NearestClassMean, _Classifier):
    """``semobridge_ext.NearestClassMean`` for scikit-learn: the nearest class mean."""


class LDA(fewshot.LDA, _Classifier):
    """``semobridge_ext.LDA`` for scikit-learn: linear discriminant analysis."""
