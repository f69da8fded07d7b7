"""semobridge-ext: the CLIP intra-modal family as fast kernels under a plain Python API.

Nothing is built, loaded from disk or initialised on a GPU at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semobridge_ext import ops
from semobridge_ext._version import __version__ as __version__
from semobridge_ext.bridging import Bridge, bridge, use
from semobridge_ext.ops import TopK, retrieval_metrics, support_logits, topk
from semobridge_ext.runtime.backend import backend
from semobridge_ext.runtime.info import build_info

if TYPE_CHECKING:
    from semobridge_ext import clip, reference
    from semobridge_ext import ray as ray
    from semobridge_ext.cli.calls.discovering import discover_shards
    from semobridge_ext.cli.calls.inverting import invert_shards
    from semobridge_ext.cli.calls.reading import read_shards, retrieve, search
    from semobridge_ext.cli.calls.reporting import report_shards
    from semobridge_ext.cli.calls.writing import extract, map_shards
    from semobridge_ext.cli.image_features import encode_images
    from semobridge_ext.clip.class_text import class_text_features
    from semobridge_ext.clip.texts import encode_text
    from semobridge_ext.data import list_picto, load_picto, load_picto_clip, picto_transform
    from semobridge_ext.diagnostics import Diagnosis, diagnose
    from semobridge_ext.discovery import (
        GCDAccuracy,
        NumClassesEstimate,
        SpectralFilter,
        SpectralGCD,
        estimate_num_classes,
        gcd_accuracy,
    )
    from semobridge_ext.fewshot import (
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
    from semobridge_ext.fewshot.support_set import SupportSet
    from semobridge_ext.handover import export_gallery
    from semobridge_ext.incremental import IncrementalReport, RETune, incremental_report
    from semobridge_ext.inversion import Inversion, InversionMap, oti, ovi
    from semobridge_ext.linear_maps import IsoCLIP, LinearMap, RoleCentering
    from semobridge_ext.prompts import KDPL, CoOp
    from semobridge_ext.retrieval import Gallery, revisited_metrics

# Where the rest comes from, once it is asked for: a program that maps features need not load the trainings.
_LAZY = {
    "semobridge_ext.cli.calls.discovering": ("discover_shards",),
    "semobridge_ext.cli.calls.inverting": ("invert_shards",),
    "semobridge_ext.cli.calls.reading": ("read_shards", "retrieve", "search"),
    "semobridge_ext.cli.calls.reporting": ("report_shards",),
    "semobridge_ext.cli.calls.writing": ("extract", "map_shards"),
    "semobridge_ext.cli.image_features": ("encode_images",),
    "semobridge_ext.clip.class_text": ("class_text_features",),
    "semobridge_ext.clip.texts": ("encode_text",),
    "semobridge_ext.data": ("list_picto", "load_picto", "load_picto_clip", "picto_transform"),
    "semobridge_ext.diagnostics": ("Diagnosis", "diagnose"),
    "semobridge_ext.discovery": (
        "GCDAccuracy",
        "NumClassesEstimate",
        "SpectralFilter",
        "SpectralGCD",
        "estimate_num_classes",
        "gcd_accuracy",
    ),
    "semobridge_ext.fewshot": (
        "APE",
        "APET",
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
    ),
    "semobridge_ext.fewshot.support_set": ("SupportSet",),
    "semobridge_ext.handover": ("export_gallery",),
    "semobridge_ext.incremental": ("IncrementalReport", "RETune", "incremental_report"),
    "semobridge_ext.inversion": ("Inversion", "InversionMap", "oti", "ovi"),
    "semobridge_ext.linear_maps": ("IsoCLIP", "LinearMap", "RoleCentering"),
    "semobridge_ext.prompts": ("KDPL", "CoOp"),
    "semobridge_ext.retrieval": ("Gallery", "revisited_metrics"),
}
_HOMES = {name: home for home, names in _LAZY.items() for name in names}
_MODULES = ("clip", "ray", "reference")  # ray is not in __all__: a star import would hide Ray itself

__all__ = [  # noqa: RUF022 - plain order
    "APE",
    "APET",
    "Bridge",
    "CoOp",
    "Diagnosis",
    "GCDAccuracy",
    "GDA",
    "Gallery",
    "IncrementalReport",
    "Inversion",
    "InversionMap",
    "IsoCLIP",
    "KDPL",
    "LDA",
    "LPPlusPlus",
    "LinearMap",
    "NearestClassMean",
    "NumClassesEstimate",
    "ProKeR",
    "ProLIP",
    "RETune",
    "RoleCentering",
    "SeMoBridgeClassifier",
    "SeMoBridgeT",
    "SpectralFilter",
    "SpectralGCD",
    "SupportSet",
    "TipAdapter",
    "TipAdapterF",
    "TopK",
    "ZeroShot",
    "backend",
    "bridge",
    "build_info",
    "class_text_features",
    "clip",
    "diagnose",
    "discover_shards",
    "encode_images",
    "encode_text",
    "estimate_num_classes",
    "export_gallery",
    "extract",
    "gcd_accuracy",
    "incremental_report",
    "invert_shards",
    "list_picto",
    "load_picto",
    "load_picto_clip",
    "map_shards",
    "ops",
    "oti",
    "ovi",
    "picto_transform",
    "read_shards",
    "reference",
    "report_shards",
    "retrieval_metrics",
    "retrieve",
    "revisited_metrics",
    "search",
    "support_logits",
    "topk",
    "use",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found  # the next one finds it at once
        return found
    if name in _MODULES:
        from importlib import import_module

        return import_module(f"semobridge_ext.{name}")
    raise AttributeError(f"module 'semobridge_ext' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
