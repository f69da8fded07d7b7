"""Which launches take an inversion step on a device with the kernels of csrc/tower_descent.

Few rows: one cooperative launch where the device takes such launches, in half types, and all fits; else
ten launches a layer, each a product with what stands around it. More rows: cuBLAS's products, with kernels
between them.
"""

from __future__ import annotations

from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.few_rows import FewRowsPlan, takes_few
from semobridge_ext._engines.tower_descent.one_launch import OneLaunchPlan, takes_one_launch
from semobridge_ext._engines.tower_descent.rows import SlotRows
from semobridge_ext._engines.tower_descent.step import Plan
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights


def plan_of(weights: LaunchedWeights, rows: SlotRows, samples: int, pieces: type[TorchTowerPieces]) -> Plan:
    """The step over buffers for this many samples, by the launches that suit them."""
    if not issubclass(pieces, CudaTowerPieces) or not takes_few(weights, rows, samples):
        return Plan(weights, rows, samples, pieces)
    blocks = pieces.blocks_at_once(weights.stored, rows.base.device)
    if blocks > 0 and takes_one_launch(weights, rows):
        return OneLaunchPlan(weights, rows, samples, pieces, blocks)
    return FewRowsPlan(weights, rows, samples, pieces)
