"""The package on a Ray cluster: callables for Ray Data, and exact search over a data set of many nodes.

Ray is imported where a cluster is asked for: the callables are plain classes and work on a dictionary of
arrays without it.
"""

from semobridge_ext.ray.classify import Classify
from semobridge_ext.ray.encode import Encode
from semobridge_ext.ray.invert import Invert
from semobridge_ext.ray.map_rows import Map
from semobridge_ext.ray.search import topk

__all__ = ["Classify", "Encode", "Invert", "Map", "topk"]
