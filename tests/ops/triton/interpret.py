"""`TRITON_INTERPRET=1 python interpret.py [FOLDER]`: the Triton kernels against float64, errors as JSON.

FOLDER holds the kernel files to check in place of the package's. With CHECK_DEVICE=cuda in place of the
interpreter the same checks run on a GPU.

A program of its own: the interpreter is chosen when the kernels are defined.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

import semobridge_ext.ops.triton

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else semobridge_ext.ops.triton.__path__[0])


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"checked_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


project, support = load("project_normalize"), load("support_logits")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORST: dict[str, float] = {}


def close(name: str, got: Tensor, want: Tensor, relative: float = 1e-5) -> None:
    """Half a unit in the last place of a half type, and 1e-5 of the row's largest value."""
    assert got.shape == want.shape and want.dtype is torch.float64 and torch.isfinite(want).all()
    assert torch.isfinite(got).all(), f"{name}: not finite"
    assert want.numel() == 0 or (want != 0).double().mean() > 0.2, f"{name}: no signal"
    half = 0.0
    if got.dtype is not torch.float32:
        half = 0.5 * torch.finfo(got.dtype).eps * 2.0 ** want.abs().clamp_min(1e-30).log2().floor()
    scale = want.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    beyond = float((((got.double() - want).abs() - half).clamp_min(0) / scale).max())
    key = f"{name}/{str(got.dtype).removeprefix('torch.')}"
    WORST[key] = max(WORST.get(key, 0.0), beyond)
    assert beyond <= relative, f"{key}: {beyond:.2e}"


def check_project() -> None:
    for dtype in DTYPES:
        for n, k, m in ((1, 64, 64), (70, 33, 20), (130, 100, 129), (3, 1, 1)):
            wide = torch.randn(n, k + 3, dtype=torch.float64).to(dtype)
            x, matrix = wide[:, :k], torch.randn(k, m, dtype=torch.float64).to(dtype)
            bias = torch.randn(m)
            for b in (None, bias):
                y = x.double() @ matrix.double() + (0 if b is None else b.double())
                out, norms = project.launch_project_normalize_fwd(x, matrix, b, 0.7, True)
                close("project_normalize", out, 0.7 * torch.nn.functional.normalize(y, dim=1))
                close("project_normalize norms", norms.unsqueeze(0), y.norm(dim=1).unsqueeze(0))
            out, _ = project.launch_project_normalize_fwd(x, matrix.T.contiguous().T, None, -2.0, False)
            close("project_normalize", out, -2.0 * (x.double() @ matrix.double()))
    x = torch.randn(40, 24)
    x[3], x[7, 5], x[9] = 0, float("nan"), 1e24
    out, _ = project.launch_project_normalize_fwd(x, torch.eye(24), None, 1.0, True)
    assert (out[3] == 0).all() and out[7].isnan().all(), "zero and NaN rows"
    keep = [i for i in range(40) if i not in (3, 7)]
    close("project_normalize", out[keep], torch.nn.functional.normalize(x[keep].double(), dim=1))
    empty, _ = project.launch_project_normalize_fwd(x[:0], torch.eye(24), None, 1.0, True)
    assert empty.shape == (0, 24)


def check_support() -> None:
    for dtype in DTYPES:
        for n, s, d, classes, beta in ((1, 5, 8, 3, 1.0), (20, 150, 40, 7, 5.5), (70, 130, 33, 1, 2.0)):
            q, k = (
                torch.nn.functional.normalize(torch.randn(rows, d, dtype=torch.float64), dim=1).to(dtype)
                for rows in (n, s)
            )
            labels = torch.randint(0, max(1, classes - 1), (s,))  # the last class has no key
            weights = torch.rand(s) + 0.1
            order = torch.argsort(labels, stable=True)
            offsets = torch.zeros(classes + 1, dtype=torch.int64)
            offsets[1:] = torch.bincount(labels, minlength=classes).cumsum(0)
            for w in (None, weights):
                term = torch.exp(-beta * (1 - q.double() @ k.double().T))
                term = term if w is None else term * w.double()
                want = torch.zeros(n, classes, dtype=torch.float64).index_add_(1, labels, term)
                got = support.launch_support_logits_fwd(q, k, order, offsets, beta, w)
                close(f"support_logits from {str(dtype).removeprefix('torch.')}", got, want)
            in_order = support.launch_support_logits_fwd(q, k[order], None, offsets, beta, weights[order])
            assert torch.equal(in_order, got), "an order and keys that lie so differ"
    none = support.launch_support_logits_fwd(q[:0], k, order, offsets, beta, None)
    assert none.shape == (0, classes)


if __name__ == "__main__":
    torch.manual_seed(2509)
    torch.set_num_threads(1)
    torch.set_default_device(os.environ.get("CHECK_DEVICE", "cpu"))
    check_project()
    check_support()
    print(json.dumps(WORST))
