"""Linear maps between and within the modalities."""

from semobridge_ext.linear_maps.isoclip import IsoCLIP
from semobridge_ext.linear_maps.linear_map import LinearMap
from semobridge_ext.linear_maps.role_centering import RoleCentering

__all__ = ["IsoCLIP", "LinearMap", "RoleCentering"]
