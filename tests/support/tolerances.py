"""The one table of tolerances: by family and output dtype, each with the worst error seen.

An element may differ from the oracle by ``ulps`` units in the last place of the output dtype at the
oracle's value, plus ``relative`` times the largest magnitude of the oracle's row. The oracle is
float64 on inputs already rounded to the dtype under test.

``seen`` is the worst error that the whole suite met on the developers' machine (every instruction
set), in the unit of the binding part: ulps for the half types, a fraction of the row's largest
magnitude otherwise. ``pytest`` prints the figures of each run at its end, so that this column can be
kept honest. No tensor library is needed: programs that run apart read the table too.
"""

from __future__ import annotations

from dataclasses import dataclass

F64, F32, BF16, F16 = "float64", "float32", "bfloat16", "float16"


@dataclass(frozen=True)
class Tolerance:
    ulps: float
    relative: float
    seen: float


TABLE: dict[tuple[str, str], Tolerance] = {
    # One product with its normalisation, rounded once, to nearest, to the output dtype.
    ("op", F64): Tolerance(0, 1e-13, 8.4e-16),
    ("op", F32): Tolerance(0, 1e-5, 1.4e-6),
    ("op", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("op", F16): Tolerance(0.5, 1e-5, 0.489),
    # Gradients of one op. The half types save the unit rows rounded, so their gradient carries that
    # rounding (2^-9 and 2^-12 of the row) through the projection g - y(y.g).
    ("op_grad", F64): Tolerance(0, 1e-12, 7.4e-16),
    ("op_grad", F32): Tolerance(0, 1e-5, 3.9e-7),
    ("op_grad", BF16): Tolerance(0, 2e-2, 8.1e-3),
    ("op_grad", F16): Tolerance(0, 2e-3, 6.4e-4),
    # The folded bridge: one or two products, one rounding to the output.
    ("bridge", F64): Tolerance(0, 1e-12, 8.0e-15),
    ("bridge", F32): Tolerance(0, 1e-5, 2.2e-6),
    ("bridge", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("bridge", F16): Tolerance(0.5, 1e-5, 0.489),
    # The unfolded bridge (class bias, gradients): two ops, the feature between them rounded to the
    # dtype of the input.
    ("chain", F64): Tolerance(0, 1e-12, 6.0e-16),
    ("chain", F32): Tolerance(0, 1e-5, 4.3e-7),
    ("chain", BF16): Tolerance(0, 2e-2, 6.2e-3),
    ("chain", F16): Tolerance(0, 2e-3, 1.1e-3),
    # One CUDA or Triton kernel, emulated or interpreted: results and gradients, rounded once.
    ("kernel", F32): Tolerance(0, 1e-5, 3.5e-6),
    ("kernel", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("kernel", F16): Tolerance(0.5, 1e-5, 0.490),
    # A whole step of SeMoBridge-T: logits reach 100, where float32 keeps 4e-6, and exp passes that on. Plain
    # autograd in float32 is off by 3e-6 here.
    ("step_grad", F32): Tolerance(0, 4e-5, 1.2e-5),
    # The Python side of the CUDA kernels, over their emulation: narrow rows, one product.
    ("cuda_op", F32): Tolerance(0, 2e-6, 2.0e-7),
    # A bfloat16 row meets 16 bits of the matrix on tensor cores, as in "kernel".
    ("cuda_op", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("cuda_op", F16): Tolerance(0.5, 2e-6, 0.499),
    # Its products of half rows in TF32, which keeps 2^-11 of a weight.
    ("tf32_grad", F32): Tolerance(0, 1e-3, 5.4e-4),
}


# Errors that are not an element's: of a row's length, of a loss, of 1 − cosine. Bound, worst seen.
LIMITS: dict[tuple[str, str], tuple[float, float]] = {
    # One pass of the tower's engine on the CPU against the same tower in float64.
    ("tower", F64): (1e-12, 3e-15),
    ("tower", F32): (1e-5, 1.4e-6),
    # Tokens and features after up to 150 steps of AdamW, which amplifies rounding: where a gradient nears
    # zero its sign decides a whole step. float32 is held so for 20 steps only.
    ("descent", F64): (1e-10, 1e-12),
    ("descent", F32): (1e-3, 3e-5),
    # One pass of LaunchedTower by type of products and activations. A gradient passes twice as many
    # roundings as a feature.
    ("launched", F64): (1e-12, 1.4e-15),
    ("launched", F32): (1e-5, 6.8e-7),
    ("launched", BF16): (3e-2, 1.0e-2),
    ("launched", F16): (4e-3, 1.7e-3),
    ("launched_grad", F64): (1e-12, 2.3e-15),
    ("launched_grad", F32): (1e-5, 7.8e-7),
    ("launched_grad", BF16): (4e-2, 1.5e-2),
    ("launched_grad", F16): (6e-3, 1.9e-3),
    # 20 of its steps: losses, and 1 − cosine of the features (in float64) of the tokens that were found.
    # The half types are held loosely, for AdamW's reason above.
    ("launched_loss", F64): (1e-12, 1.6e-15),
    ("launched_loss", F32): (1e-5, 2.4e-7),
    ("launched_loss", BF16): (2e-2, 2.3e-3),
    ("launched_loss", F16): (2e-3, 1.2e-3),
    ("launched_cosine", F64): (1e-12, 2e-16),
    ("launched_cosine", F32): (1e-8, 1e-11),
    ("launched_cosine", BF16): (1e-2, 4e-5),
    ("launched_cosine", F16): (5e-3, 1.5e-3),
}


def tolerance(family: str, dtype: str) -> Tolerance:
    return TABLE[family, dtype]
