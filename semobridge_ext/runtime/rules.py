"""What `auto` takes on a CUDA device where nothing was measured: rules by architecture.

They are written from the model on paper (rule_table.py by bench/gpu/write_rules.py; docs/gpu.md): a kernel
where it is ahead of the plain program of this package, which rounds as it does. What was measured on the
device (thresholds.py) comes first, and no rule's kernel runs unchecked (self_check.py).
"""

from __future__ import annotations

from functools import lru_cache

import torch

from semobridge_ext.runtime.rule_table import GAINS, RULES, Capability, Steps

SINGLE, HALF = (torch.float32,), (torch.float16, torch.bfloat16)

_PLAIN: Steps = [(0, "eager")]


@lru_cache(maxsize=16)
def capability(device: torch.device) -> Capability | None:
    """Of a CUDA device that PyTorch can use; None elsewhere, and on AMD's, which count otherwise."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def rule_for(found: Capability | None) -> Capability | None:
    """The architecture whose rule a device takes: its own, else the nearest older one."""
    best = None
    for known in RULES:  # a loop: every call of an operator comes by here
        if found is not None and known <= found and (best is None or known > best):
            best = known
    return best


def steps(op: str, device: torch.device, dtype: torch.dtype) -> Steps:
    """The device's rule for an operator; plain PyTorch where there is none."""
    rule = rule_for(capability(device))
    if rule is None or op not in RULES[rule] or dtype not in (*SINGLE, *HALF):
        return _PLAIN
    return RULES[rule][op][0 if dtype in SINGLE else 1]


def reason(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why the rule is what it is, in words: the architecture, and what the model on paper says."""
    rule = rule_for(capability(device))
    if rule is None:
        return "no rule for this architecture"
    gains = GAINS.get(rule, {}).get(op, (None, None))
    gain = gains[0 if dtype in SINGLE else 1]
    said = f"{gain[0]:g} to {gain[1]:g} times as fast as PyTorch" if gain else "no kernel is ahead of PyTorch"
    return f"rule of sm_{rule[0]}{rule[1]}: on paper {said}"


def at(steps: Steps, size: int) -> str:
    """The backend for a size; plain PyTorch below the first step."""
    found = "eager"
    for least, backend in steps:
        if least > size:
            break
        found = backend
    return found
