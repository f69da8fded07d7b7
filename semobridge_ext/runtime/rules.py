"""What `auto` takes on a CUDA device where nothing was measured: rules by architecture.

They follow from the model on paper (docs/gpu.md): native kernels where one launch stands against a chain of
them, Triton where it saves an array that plain PyTorch would write, plain PyTorch where that is as fast. What
was measured on the device (thresholds.py) comes first, and no rule's kernel runs unchecked (self_check.py).
"""

from __future__ import annotations

from functools import lru_cache

import torch

Steps = list[tuple[int, str]]  # from this size on, this backend; ascending
Capability = tuple[int, int]
SINGLE, HALF = (torch.float32,), (torch.float16, torch.bfloat16)

_PLAIN: Steps = [(0, "eager")]
_NATIVE: Steps = [(0, "native")]

# Compute capability → operator or loop → its steps for float32 and for half types. Sizes are those of the
# operator's `Kernels.size`.
RULES: dict[Capability, dict[str, tuple[Steps, Steps]]] = {
    (8, 0): {
        "prepared_projection": (_NATIVE, _NATIVE),
        "project_normalize": (_NATIVE, _NATIVE),
        "blend_logits": (_NATIVE, _NATIVE),
        "symmetric_kl": (_NATIVE, _NATIVE),
        "topk": (_NATIVE, _NATIVE),
        # Half types on tensor cores write no [N, S] array; from about 4 MB of it on that is felt. Float32
        # products of Triton are several times slower than cuBLAS's, which is more than the array costs.
        "support_logits": (_PLAIN, [(0, "eager"), (1 << 20, "triton")]),
        "tower_descent": (_NATIVE, _NATIVE),
        "bridge_training": (_NATIVE, _PLAIN),
    },
}


@lru_cache(maxsize=16)
def capability(device: torch.device) -> Capability | None:
    """Of a CUDA device that PyTorch can use; None elsewhere, and on AMD's, which count otherwise."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def rule_for(found: Capability | None) -> Capability | None:
    """The architecture whose rule a device takes: its own, else the nearest older one."""
    older = [known for known in RULES if found is not None and known <= found]
    return max(older, default=None)


def steps(op: str, device: torch.device, dtype: torch.dtype) -> Steps:
    """The device's rule for an operator; plain PyTorch where there is none."""
    rule = rule_for(capability(device))
    if rule is None or op not in RULES[rule] or dtype not in (*SINGLE, *HALF):
        return _PLAIN
    return RULES[rule][op][0 if dtype in SINGLE else 1]


def at(steps: Steps, size: int) -> str:
    """The backend for a size; plain PyTorch below the first step."""
    return next((backend for least, backend in reversed(steps) if least <= size), "eager")
