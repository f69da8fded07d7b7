"""The estimators of this package as scikit-learn's own types: ``from semobridge_ext.sklearn import GDA``.

Each class is the one of the same name in ``semobridge_ext`` and a ``BaseEstimator``. Those keep to
scikit-learn's conventions too, without it, and its functions accept them; these are instances of its classes,
take part in metadata routing and have its view in notebooks. Files are the same.
"""

from __future__ import annotations

try:
    from sklearn.utils import Tags as _Tags  # noqa: F401  # since 1.6
except ImportError as error:
    raise ImportError(
        "semobridge_ext.sklearn: scikit-learn must be installed, 1.6 or newer; pip install "
        "'semobridge-ext[sklearn]', or use the estimators of semobridge_ext, which need none"
    ) from error

from semobridge_ext.sklearn.classifiers import (
    APE,
    APET,
    GDA,
    LDA,
    LPPlusPlus,
    NearestClassMean,
    ProKeR,
    ProLIP,
    SeMoBridgeClassifier,
    SeMoBridgeT,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
)
from semobridge_ext.sklearn.transformers import Bridge, IsoCLIP, LinearMap

__all__ = [  # noqa: RUF022 - plain order
    "APE",
    "APET",
    "Bridge",
    "GDA",
    "IsoCLIP",
    "LDA",
    "LPPlusPlus",
    "LinearMap",
    "NearestClassMean",
    "ProKeR",
    "ProLIP",
    "SeMoBridgeClassifier",
    "SeMoBridgeT",
    "TipAdapter",
    "TipAdapterF",
    "ZeroShot",
]
