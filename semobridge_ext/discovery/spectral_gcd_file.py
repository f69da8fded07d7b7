"""The file of a trained SpectralGCD, read and checked."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import ACTIVATIONS
from semobridge_ext._schema import Field, need, restoring
from semobridge_ext.discovery.vision_block import Facts
from semobridge_ext.fewshot.estimator_file import load_estimator

FORMAT = "semobridge-ext SpectralGCD 1"
GIVEN_AGAIN = ("concept_features", "model")  # parameters that are no settings
_BLOCK = {
    "norm1_weight": ("T",), "norm1_bias": ("T",), "qkv_weight": ("T", "Q"), "qkv_bias": ("Q",),
    "out_weight": ("T", "T"), "out_bias": ("T",), "norm2_weight": ("T",), "norm2_bias": ("T",),
    "fc_weight": ("T", "M"), "fc_bias": ("M",), "proj_weight": ("M", "T"), "proj_bias": ("T",),
    "final_weight": ("T",), "final_bias": ("T",), "projection_weight": ("T", "D"), "projection_bias": ("D",),
}  # fmt: skip
_MATRICES = [f"block_{n}_weight" for n in ("norm1", "qkv", "out", "norm2", "fc", "proj")]
SCHEMA: dict[str, Field] = {
    "adapter": Field(("D", "D"), optional=True),
    "fold": Field(("D", "H"), optional=True),
    "bias": Field(("H",), optional=True),
    "concepts": Field(("K", "D"), optional=True),
    "prototypes": Field(("C", "H")),
    "losses": Field(("L",), (torch.float64,)),
    **{f"block_{name}": Field(axes, optional=True) for name, axes in _BLOCK.items()},
}


class Saved(NamedTuple):
    tensors: dict[str, Tensor]
    params: dict[str, Any]
    names: list[Hashable]
    old: int
    width: int
    facts: Facts | None


def read(where: str, path: Any, parameters: set[str]) -> Saved:
    """ValueError for a file that is not as ``SpectralGCD.save`` writes it."""
    fields = ("names", "old", "params", "width", "block")
    tensors, values, sizes = load_estimator(where, path, FORMAT, SCHEMA, fields)
    with restoring(where, path):
        parts = [name in tensors for name in ("fold", "bias", "concepts")]
        need(where, path, len(set(parts)) == 1, "fold, bias and concepts together", sorted(tensors))
        width = sizes.setdefault("D", sizes["H"])
        need(where, path, parts[0] or width == sizes["H"], f"prototypes of width {width}", sizes["H"])
        need(where, path, values["width"] == width, f"the width {width}", values["width"])
        old, params = values["old"], values["params"]
        counted = isinstance(old, int) and not isinstance(old, bool) and 1 <= old <= sizes["C"]
        need(where, path, counted, f"1 to {sizes['C']} old classes", old)
        known = parameters - set(GIVEN_AGAIN)
        need(where, path, isinstance(params, dict) and set(params) == known, "the parameters", params)
        facts = _facts(where, path, tensors, values["block"], sizes)
    return Saved(tensors, params, values["names"], old, width, facts)


def _facts(
    where: str, path: Any, tensors: dict[str, Tensor], given: Any, sizes: dict[str, int]
) -> Facts | None:
    held = [name for name in tensors if name.startswith("block_")]
    if given is None:
        need(where, path, not held, "facts of the block", "its tensors alone")
        return None
    missing = [name for name in _MATRICES if name not in tensors]
    need(where, path, not missing, "the block's tensors", f"none of {missing}")
    need(where, path, "adapter" not in tensors, "a block or an adapter", "both")
    need(
        where, path, isinstance(given, dict) and set(given) == set(Facts._fields), "the block's facts", given
    )
    heads, tokens, pooled = (given[name] for name in ("heads", "tokens", "pooled"))
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (heads, tokens, pooled))
    need(where, path, whole and heads >= 1 and 0 <= pooled < tokens, "heads and a pooled token", given)
    width = sizes["T"]
    need(where, path, sizes["Q"] == 3 * width and width % heads == 0, f"queries of width {width}", sizes["Q"])
    end = "block_projection_weight" in tensors or sizes["D"] == width
    need(where, path, end, f"features of width {width}", sizes["D"])
    need(where, path, given["activation"] in ACTIVATIONS, "a known activation", given["activation"])
    eps = given["eps"]
    small = isinstance(eps, list) and len(eps) == 3 and all(_is_positive(v) for v in eps)
    need(where, path, small, "three eps above 0", eps)
    return Facts(heads, given["activation"], tokens, pooled, tuple(eps))


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0
