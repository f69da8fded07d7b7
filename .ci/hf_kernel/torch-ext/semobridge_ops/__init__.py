"""Exact search, the class sums of cache classifiers and a symmetric KL loss, as Triton kernels.

On CUDA tensors a kernel runs where a rule takes it, after one comparison with plain PyTorch; every other call
is plain PyTorch. `with backend("eager")` and `with backend("triton")` ask for one of the two.
"""

from .operators.support_logits.op import support_logits
from .operators.symmetric_kl.op import symmetric_kl
from .operators.topk.op import TopK, topk
from .runtime import rules
from .runtime.backend import backend

__all__ = ["TopK", "backend", "support_logits", "symmetric_kl", "topk"]

# The rules are those of the whole package. CUDA C++ stays behind here, and Triton's kernels do the same.
rules.RULES = {
    capability: {
        op: tuple(
            [(least, "triton" if name == "native" else name) for least, name in steps] for steps in both
        )
        for op, both in of_capability.items()
    }
    for capability, of_capability in rules.RULES.items()
}
