"""The CUDA and Triton kernels of symmetric_kl against float64, and how to break them."""

from __future__ import annotations

import numpy as np

from tests.cuda_emulation.buffers import FLOAT, NAMES, SANITIZED, Matrix
from tests.cuda_emulation.cases import PLACE, STORAGES, close, complex_step, layouts

SHAPES = ((1, 1, 1.0), (9, 5, 0.5), (11, 96, 1.0), (2, 1030, 2.0))  # rows, classes, temperature
NO_MATRIX = (0, FLOAT, 0, 0, 0)


def divergences(a: np.ndarray, b: np.ndarray, temperature: float) -> np.ndarray:
    """½·KL both ways of each row, by the definition; complex numbers pass through."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x / temperature
        x = x - x.real.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, q = log_softmax(a), log_softmax(b)
    return (np.exp(p) * (p - q) + np.exp(q) * (q - p)).sum(-1) / 2


def gradient(a: np.ndarray, b: np.ndarray, temperature: float) -> np.ndarray:
    """Of the rows with respect to a, by complex steps."""
    rows = [
        complex_step(lambda x, o=other: divergences(x, o, temperature), own)
        for own, other in zip(a, b, strict=True)
    ]
    return np.stack(rows)


def case_symmetric_kl(m, rng: np.random.Generator) -> None:
    for n, classes, temperature in SHAPES:
        for dtype in STORAGES:
            if classes > 1000 and (dtype != FLOAT and SANITIZED):
                continue  # the same addresses, slowly
            for layout in layouts():
                values = rng.standard_normal((2, n, classes)) + np.array([0.0, 40.0]).reshape(2, 1, 1)
                a, b = (Matrix(n, classes, dtype, values=v, **layout) for v in values)
                rows, stats = Matrix(1, n), Matrix(n, 6)
                m.symmetric_kl_cuda(a.view, b.view, temperature, rows.address, stats.address, *PLACE)
                if classes > 1:
                    want = divergences(a.values, b.values, temperature)
                    close(rows.values.T, want[:, None], FLOAT, f"symmetric_kl of {NAMES[dtype]}")
                grad = Matrix(1, n, values=rng.standard_normal(n))
                found = [Matrix(n, classes, dtype, **layout) for _ in range(2)]
                pairs = ((a.values, b.values), (b.values, a.values))
                wants = [grad.values.T * gradient(*pair, temperature) for pair in pairs]
                for wanted in ((True, True), (True, False), (False, True)):
                    views = [g.view if w else NO_MATRIX for g, w in zip(found, wanted, strict=True)]
                    for g in found:
                        g._words[...] = 0
                    m.symmetric_kl_bwd_cuda(
                        a.view, b.view, temperature, grad.address, stats.address, *views, *PLACE
                    )
                    for g, want, w in zip(found, wants, wanted, strict=True):
                        g.check_guards()
                        if not w:
                            assert (g.values == 0).all(), "a gradient that nobody wanted was written"
                        elif classes > 1:
                            close(g.values, want, dtype, "symmetric_kl gradient")
                        else:
                            assert (g.values == 0).all(), "one class has no gradient"
                for guarded in (rows, stats):
                    guarded.check_guards()
    a, b = (Matrix(6, 40, values=rng.standard_normal((6, 40))) for _ in range(2))
    rows, stats = Matrix(1, 6), Matrix(6, 6)
    clean = divergences(a.values, b.values, 1.0)
    a._words[2, 39] = np.float32("nan").view(np.uint32)
    m.symmetric_kl_cuda(a.view, b.view, 1.0, rows.address, stats.address, *PLACE)
    keep = np.arange(6) != 2
    assert np.isnan(rows.values[0, 2]), "NaN is lost"
    close(rows.values[:, keep].T, clean[keep, None], FLOAT, "symmetric_kl of float32")
    m.symmetric_kl_cuda((*a.view[:2], 0, 40, 40), (*b.view[:2], 0, 40, 40), 1.0, 0, 0, *PLACE)


def _mutations(**pieces: tuple[str, str]) -> dict[str, tuple[str, str, str, str, str]]:
    return {
        f"symmetric_kl: {name.replace('_', ' ')}": (
            "symmetric_kl/cuda.cu", text, replacement, "symmetric_kl", "ascending"
        )
        for name, (text, replacement) in pieces.items()
    }  # fmt: skip


_LOOP = """i += kTeam * kStep) {
    load(row_a + i, u);
    load(row_b + i, v);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      u[j] *="""
CUDA_MUTATIONS = _mutations(
    the_running_sum_is_not_rescaled=("s.sum_a *= by_a;", ";"),
    the_moment_does_not_follow_its_centre=("by_a * (s.moment_a + shift * s.sum_a)", "by_a * s.moment_a"),
    merged_moments_keep_their_centres=("left * x.sum_b", "0.0f * x.sum_b"),
    a_warp_of_the_block_is_left_out=("w < kWarps; ++w", "w + 1 < kWarps; ++w"),
    the_temperature_is_forgotten=("u[j] *= inverse;", ";"),
    the_gradient_lacks_the_mean=("p * (d - forward)", "p * d"),
    the_other_gradient_has_the_wrong_sign=("q * (-d - backward) + (q - p)", "q * (-d - backward) + (p - q)"),
    the_last_logits_are_skipped=(f"i < classes; {_LOOP}", f"i + kStep < classes; {_LOOP}"),
    a_block_does_not_wait=("__syncthreads();\n    if (rank", ";\n    if (rank"),
)  # fmt: skip


# -- Triton ------------------------------------------------------------------------------------------


def check_symmetric_kl() -> None:
    import torch

    from semobridge_ext.reference import symmetric_kl
    from tests.support import triton_kernels as harness

    kernels = harness.load("symmetric_kl")
    for dtype in harness.DTYPES:
        for n, classes, temperature in ((1, 1, 1.0), (9, 5, 0.5), (6, 300, 1.0), (2, 1100, 2.0)):
            a, b = (torch.randn(n, classes + 3).to(dtype)[:, :classes] for _ in range(2))
            ramp = torch.linspace(0, 4, classes).to(dtype)  # the largest logits come last
            a, b = a + ramp, b + ramp + 40
            leaves = [t.double().requires_grad_() for t in (a, b)]
            want = torch.stack(
                [
                    symmetric_kl(x[None], y[None], temperature=temperature)
                    for x, y in zip(*leaves, strict=True)
                ]
            )
            rows, stats = kernels.symmetric_kl_fwd(a, b, temperature)
            grad = torch.randn(n)
            gots = kernels.symmetric_kl_bwd(grad, a, b, stats, temperature, True, True)
            if classes == 1:
                assert (rows == 0).all() and all((g == 0).all() for g in gots)
                continue
            harness.close(f"symmetric_kl of {harness.name_of(dtype)}", rows[:, None], want.detach()[:, None])
            for name, got, expected in zip(
                "ab", gots, torch.autograd.grad(want, leaves, grad.double()), strict=True
            ):
                harness.close(f"symmetric_kl grad_{name}", got, expected)
            one, none = kernels.symmetric_kl_bwd(grad, a, b, stats, temperature, True, False)
            assert torch.equal(one, gots[0]) and none.numel() == 0
            none, one = kernels.symmetric_kl_bwd(grad, a, b, stats, temperature, False, True)
            assert torch.equal(one, gots[1]) and none.numel() == 0
    a, b = torch.randn(2, 7, 40)
    before, _ = kernels.symmetric_kl_fwd(a, b, 1.0)
    a[3, 7] = float("nan")
    rows, _ = kernels.symmetric_kl_fwd(a, b, 1.0)
    keep = torch.arange(7) != 3
    assert rows[3].isnan() and torch.equal(rows[keep], before[keep]), "NaN left its row"
    assert kernels.symmetric_kl_fwd(a[:0], b[:0], 1.0)[1].shape == (0, 6)


TRITON_RESULTS = {"symmetric_kl": 9}  # rows by type of logits; two gradients in three types
TRITON_MUTATIONS = {
    f"symmetric_kl: {name}": ("symmetric_kl", text, replacement)
    for name, text, replacement in (
        ("the running sum is kept", "sum_a = by_a * sum_a", "sum_a = sum_a"),
        ("the moment keeps its centre", "(centre - new_centre) * sum_b", "0.0 * sum_b"),
        ("columns past the row count", "tl.where(live, tl.exp(v", "tl.where(inside[:, None], tl.exp(v"),
        ("the temperature is forgotten", "tl.float32) * inverse", "tl.float32)"),
        ("the gradient lacks the mean", "p * (d - forward)", "p * d"),
        ("the other gradient has the wrong sign", "(q - p))", "(p - q))"),
    )
}  # fmt: skip


def triton_cases(Case) -> list:
    from semobridge_ext._ops.symmetric_kl import triton

    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for kernel in (triton.FORWARD, triton.BACKWARD):
            names = [n for n in kernel.function.arg_names if n.endswith("_ptr")]
            logits = ("a_ptr", "b_ptr", "grad_a_ptr", "grad_b_ptr")
            types = {n: f"*{dtype}" if n in logits else "*fp32" for n in names} | {"inverse": "fp32"}
            constants = {n: True for n in ("NEED_A", "NEED_B") if n in kernel.function.arg_names}
            for classes in (100, 1000):
                found.append(Case(kernel, f"C = {classes}", dtype, types, constants, {"classes": classes}))
    return found
