"""Linear maps between and within the modalities."""

from semobridge_ext.linear_maps.isoclip import IsoCLIP
from semobridge_ext.linear_maps.linear_map import LinearMap

__all__ = ["IsoCLIP", "LinearMap"]
