"""The operators: one op, one file. Methods are built on these."""

from semobridge_ext.ops.frozen_tower import FrozenTower, PackedTower
from semobridge_ext.ops.project_normalize import project_normalize
from semobridge_ext.ops.projection import Projection

__all__ = ["FrozenTower", "PackedTower", "Projection", "project_normalize"]
