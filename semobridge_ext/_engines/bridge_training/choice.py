"""Which implementation takes the steps of a SeMoBridge-T training run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from semobridge_ext._engines.bridge_training.cpu import CpuTrainingPieces
from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces
from semobridge_ext._engines.bridge_training.spec import Batch
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext.runtime.backend import HAS_CUDA, requested
from semobridge_ext.runtime.choice import resolve

OP = "bridge_training"
PiecesOf = Callable[[Batch], TorchTrainingPieces]


class Choice(NamedTuple):
    """What a trainer is made of."""

    pieces: PiecesOf  # what runs between the products
    # Triton makes the losses over N×C logits, which are never stored: slower, so on request alone.
    streamed: bool = False
    graph: bool = True  # on a CUDA device the step is captured and replayed


def choose(function: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """By device, dtype and the backend asked for; ``function`` is named in messages."""
    single = dtype is torch.float32
    # It saves memory and costs time: neither a rule nor a measurement may choose it.
    streams = (single or "float64") if requested() == "triton" else False
    name = resolve(function, device, cuda=single, triton=streams, work=(OP, dtype, 1))
    if name == "native":
        return Choice(CpuTrainingPieces if device.type == "cpu" else CudaTrainingPieces)
    if name == "triton":
        # What Triton does not stream is small, and goes to csrc's kernels where they were built.
        kernels = device.type == "cuda" and HAS_CUDA
        return Choice(CudaTrainingPieces if kernels else TorchTrainingPieces, streamed=True)
    return Choice(TorchTrainingPieces, graph=requested() != "eager")
