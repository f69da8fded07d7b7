"""Where the Triton kernels lie, by the names of their checks."""

from __future__ import annotations

from pathlib import Path

import semobridge_ext

_PACKAGE = Path(semobridge_ext.__file__).parent
FILES = {
    "project_normalize": _PACKAGE / "_ops" / "project_normalize" / "triton.py",
    "support_logits": _PACKAGE / "_ops" / "support_logits" / "triton.py",
    "support_logits_bwd": _PACKAGE / "_ops" / "support_logits" / "triton_backward.py",
    "topk": _PACKAGE / "_ops" / "topk" / "triton.py",
    "logits_cross_entropy": _PACKAGE / "_engines" / "bridge_training" / "triton.py",
}


def all_files() -> list[Path]:
    """Every file of the package that defines a kernel."""
    return [path for path in sorted(_PACKAGE.rglob("*.py")) if "@triton.jit" in path.read_text()]
