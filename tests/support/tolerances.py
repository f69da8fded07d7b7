"""The one table of tolerances: by family and output dtype, each with the worst error seen.

An element may differ from the oracle by ``ulps`` units in the last place of the output dtype at the
oracle's value, plus ``relative`` times the largest magnitude of the oracle's row. The oracle is
float64 on inputs already rounded to the dtype under test.

``seen`` is the worst error that the whole suite met on the developers' machine (every instruction
set, a few base seeds), in the unit of the binding part: ulps for the half types, a fraction of the row's
largest magnitude otherwise. ``pytest`` prints the figures of each run at its end, so that this column can
be kept honest. No tensor library is needed: programs that run apart read the table too.
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
    ("op", F64): Tolerance(0, 1e-13, 1.3e-14),
    ("op", F32): Tolerance(0, 1e-5, 4.6e-6),
    ("op", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("op", F16): Tolerance(0.5, 1e-5, 0.489),
    # Gradients of one op. The half types save the unit rows rounded, so their gradient carries that
    # rounding (2^-9 and 2^-12 of the row) through the projection g - y(y.g).
    ("op_grad", F64): Tolerance(0, 1e-12, 1.4e-15),
    ("op_grad", F32): Tolerance(0, 1e-5, 3.0e-6),
    ("op_grad", BF16): Tolerance(0, 2e-2, 8.1e-3),
    ("op_grad", F16): Tolerance(0, 2e-3, 7.9e-4),
    # The folded bridge: one or two products, one rounding to the output.
    ("bridge", F64): Tolerance(0, 1e-12, 1.2e-14),
    ("bridge", F32): Tolerance(0, 1e-5, 4.6e-6),
    ("bridge", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("bridge", F16): Tolerance(0.5, 1e-5, 0.489),
    # The unfolded bridge (class bias, gradients): two ops, the feature between them rounded to the
    # dtype of the input.
    ("chain", F64): Tolerance(0, 1e-12, 8.1e-16),
    ("chain", F32): Tolerance(0, 1e-5, 8.4e-7),
    ("chain", BF16): Tolerance(0, 2e-2, 9.6e-3),
    ("chain", F16): Tolerance(0, 2e-3, 1.1e-3),
    # One CUDA or Triton kernel, emulated or interpreted: results and gradients, rounded once.
    ("kernel", F32): Tolerance(0, 1e-5, 3.5e-6),
    ("kernel", BF16): Tolerance(0.5, 1e-5, 0.499),
    ("kernel", F16): Tolerance(0.5, 1e-5, 0.490),
    # The Python side of the CUDA kernels, over their emulation: narrow rows, one product.
    ("cuda_op", F32): Tolerance(0, 2e-6, 4.7e-7),
    # A bfloat16 row meets 16 bits of the matrix on tensor cores, 2^-17 of an entry: 2.5e-6 seen in a sum
    # with the suite's base seed, 6.4e-6 with another.
    ("cuda_op", BF16): Tolerance(0.5, 8e-6, 0.4996),
    ("cuda_op", F16): Tolerance(0.5, 2e-6, 0.499),
    # Many rows of bfloat16 and a matrix in one part of float16, 2^-12 of an entry: 3.6e-4 of a row's largest
    # value seen beyond the half unit.
    ("one_part", BF16): Tolerance(0.5, 1e-3, 0.38),
    # Products of half rows with a matrix in two parts, before they are rounded.
    ("half_product", BF16): Tolerance(0, 2e-5, 8.4e-6),
    ("half_product", F16): Tolerance(0, 4e-6, 9.6e-7),
    # Logits of a blend from such products: an exponent of 4 carries what the parts leave of a cosine.
    ("half_blend", F32): Tolerance(0, 2e-6, 4.7e-7),
    ("half_blend", BF16): Tolerance(0, 4e-5, 1e-5),
    ("half_blend", F16): Tolerance(0, 4e-6, 1e-6),
    # Its products of half rows in TF32, which keeps 2^-11 of a weight.
    ("tf32_grad", F32): Tolerance(0, 1e-3, 5.4e-4),
    # SeMoBridge-T's gradient with streamed losses, at logit scale 100: the softmax meets a hundred times what
    # float32 leaves of a cosine, 100 · 2^-24.
    ("streamed_grad", F32): Tolerance(0, 5e-5, 1.2e-5),
    # Classifiers' logits and blocks of cosines; posteriors of Gaussians; cache models after twelve steps.
    ("logits", F64): Tolerance(0, 3e-14, 3.9e-15),
    ("logits", F32): Tolerance(0, 4e-6, 5.6e-7),
    ("posterior", F32): Tolerance(0, 1e-6, 1.1e-7),
    ("cache_training", F64): Tolerance(0, 5e-15, 2.1e-15),
    # GDA's factor against the pseudo-inverse, ProKeR's against a dense solve; LP++ and ProLIP after up to 60
    # steps of autograd, in float32 after 25.
    ("gda", F64): Tolerance(0, 1e-14, 1.6e-15),
    ("gda", F32): Tolerance(0, 2e-6, 2.9e-7),
    ("proker", F64): Tolerance(0, 2e-15, 2.1e-16),
    ("proker", F32): Tolerance(0, 2e-6, 2.3e-7),
    ("probe_training", F64): Tolerance(0, 5e-14, 1.1e-14),
    ("probe_training", F32): Tolerance(0, 2e-5, 3.0e-6),
    ("projection_training", F64): Tolerance(0, 5e-15, 6.7e-16),
    ("projection_training", F32): Tolerance(0, 3e-6, 3.5e-7),
    # 200 000 equal terms of one sum.
    ("many_terms", F32): Tolerance(0, 1e-5, 6.2e-6),
    # Twelve steps of AdamW against torch.optim's in float64.
    ("adamw", F64): Tolerance(0, 4e-15, 4.3e-16),
    ("adamw", F32): Tolerance(0, 2e-6, 2.8e-7),
    # Products, inverses and spectra of matrices against another form of them; oracles against loops.
    ("matrix", F64): Tolerance(0, 2e-13, 7.8e-14),
    ("reference", F64): Tolerance(0, 5e-15, 5.1e-16),
    # Cosines of rows that were written as float16.
    ("written", F16): Tolerance(0, 3e-3, 5.7e-4),
    ("written", F32): Tolerance(0, 3e-6, 6.9e-7),
    # A loss of equal scores, log C: a few ulps, since a GPU has its own logarithm.
    ("even_loss", F32): Tolerance(0, 5e-7, 1.5e-8),
}


# Errors that are not an element's: a share of a row's length, of a figure, a loss or the scale that the test
# names; 1 − cosine. Bound, worst seen.
LIMITS: dict[tuple[str, str], tuple[float, float]] = {
    # Rows of a bridge against the chain that the paper writes: closed form; of a row that is given at another
    # length or bridged already; unfolded at condition 10⁵; with its matrices in the dtype.
    ("bridge_row", F32): (1e-6, 8.3e-7),
    ("bridge_kept", F32): (8e-6, 9.9e-7),
    ("ill_conditioned", F64): (5e-15, 6.1e-16),
    ("converted", F64): (1e-6, 3.3e-7),  # matrices rounded to float32 before they were converted
    ("converted", BF16): (0.05, 8.5e-3),
    ("converted", F16): (5e-3, 8.7e-4),
    # Linear maps, also through ONNX and Faiss; IsoCLIP's through a singular value decomposition.
    ("linear_map", F64): (2e-14, 4.4e-15),
    ("linear_map", F32): (1e-5, 1.5e-6),
    ("isoclip", F64): (2e-13, 2.7e-14),
    # Its projectors by a Gram matrix, in errors of LAPACK's decomposition (and units in the last place).
    ("band", F64): (16.0, 8.3),
    ("whitened", F64): (3e-13, 1.2e-13),
    # A model's features against its own modules, in its own dtype; scores of rows that were kept as float16.
    ("features", F32): (3e-6, 9.5e-7),
    ("features", F16): (2e-3, 2.9e-4),
    ("kept_scores", F16): (1e-3, 2.9e-4),
    # Lengths and sums that are 1; the exponential, and its error in a sum as a share of 6 + β.
    ("length", F32): (1e-6, 1.4e-7),
    ("exponential", F64): (2.3e-16, 2.22e-16),
    ("exponential", F32): (1.2e-7, 9.2e-8),
    ("exponent", F32): (5e-7, 3.8e-7),
    # Ranking metrics by dtype of the scores; other figures of features; of a record, what adds and subtracts.
    ("metric", F64): (4e-14, 4.7e-15),
    ("metric", F32): (1e-6, 9.4e-8),
    ("metric", BF16): (2e-3, 3.0e-4),
    ("metric", F16): (3e-4, 4.7e-5),
    ("figure", F64): (2e-15, 2.4e-16),
    ("figure", F32): (4e-7, 6.8e-8),
    ("overlap", F32): (1e-3, 1.2e-16),  # a cosine on the border of two bins may fall to either
    ("paired", F32): (4e-6, 4.3e-7),  # differences that are none
    ("backends", F32): (1e-6, 4.2e-7),
    # Scores of concepts: against the whole decomposition, and with pairs of a Krylov basis. SpectralGCD:
    # terms of its loss, their gradients, and parameters after some epochs.
    ("concept_scores", F64): (1e-11, 1.1e-12),
    ("krylov_scores", F64): (1e-10, 9.9e-12),
    ("gcd_loss", F64): (3e-14, 3.6e-15),
    ("gcd_grad", F64): (5e-15, 5.2e-16),
    ("gcd_training", F64): (1e-14, 1.1e-15),
    ("gcd_fold", F32): (2e-6, 3.2e-7),
    # Multi-label metrics against scikit-learn's; RETune: logits, losses and adaptors after some tasks.
    ("multilabel", F64): (4e-15, 8.9e-16),
    ("re_tune", F64): (2e-14, 2.9e-15),
    ("re_tune", F32): (3e-6, 3.5e-7),
    # Prompt learning: features and contexts' gradients against the model's own pass; losses and contexts of
    # up to 50 steps of SGD against autograd's.
    ("prompt_tower", F64): (1.5e-14, 1.8e-15),
    ("prompt_tower", F32): (8e-6, 9.8e-7),
    ("prompt_loss", F64): (2e-14, 3.1e-15),
    ("prompt_loss", F32): (4e-6, 5.5e-7),
    ("prompt_authors", F64): (4e-14, 4.6e-15),
    # APE-T's residual after twelve steps: entries that began at 0, so of the largest.
    ("cache_residual", F64): (1e-13, 1.3e-14),
    ("block_features", F64): (4e-15, 6.1e-16),
    ("block_features", F32): (2e-6, 3.0e-7),
    ("block_grad", F64): (8e-15, 1.2e-15),
    ("block_training", F64): (4e-15, 5.1e-16),
    ("block_half", F32): (2e-6, 3.2e-7),
    # SeMoBridge-T: loss and gradients of a step; 200 steps' losses, each of its own size, and the matrix.
    ("training_loss", F64): (3e-15, 3.8e-16),
    ("training_loss", F32): (1e-6, 1.2e-7),
    ("training_grad", F64): (2e-14, 2.8e-15),
    ("training_grad", F32): (1e-5, 1.4e-6),
    ("probe_losses", F64): (5e-14, 1.1e-14),
    ("projection_losses", F64): (5e-15, 6.7e-16),
    ("class_sums", F32): (1e-6, 1.6e-7),
    ("trajectory", F32): (2e-6, 2.1e-7),
    ("trajectory_end", F32): (1e-5, 1.5e-6),
    # Losses of training and inversion on any device. Seen on a CPU: a GPU adds in other orders.
    ("device_loss", F32): (1e-4, 1.8e-7),
    # symmetric_kl of rows that differ by 1e-3 and 1e-4: of the divergence, which is their square.
    ("near_divergence", F32): (1e-3, 1.3e-4),
    # One pass of the tower's engine on the CPU against the same tower in float64; central differences.
    ("tower", F64): (1e-12, 3e-15),
    ("tower", F32): (1e-5, 1.4e-6),
    ("tower_grad", F64): (1.5e-14, 1.6e-15),
    ("tower_grad", F32): (9e-6, 9.2e-7),
    ("differences", F64): (2e-9, 2.9e-10),
    # Tokens, features and losses after up to 150 steps of AdamW, which amplifies rounding: where a gradient
    # nears zero its sign decides a whole step. float32 is held so for 20 steps only.
    ("descent", F64): (1e-10, 3.6e-11),
    ("descent", F32): (1e-3, 3e-5),
    ("descent_loss", F64): (1e-11, 1.8e-12),
    ("descent_loss", F32): (1.8e-6, 1.8e-7),
    # After 150 steps of float32: losses, and features but for the few whose paths fork.
    ("long_descent_loss", F32): (1e-3, 2.8e-4),
    ("long_descent_cosine", F32): (1e-5, 1.2e-6),
    # Features and gradients of a tower whose rows are rounded to bfloat16 before products, 2⁻⁹ of an entry a
    # dozen times over; widths down to 15, where little averages out.
    ("bf16_products", BF16): (0.03, 6.0e-3),
    ("bf16_products_grad", BF16): (0.05, 1.3e-2),
    # Losses of weights rounded to the dtype against those of float32; the first moment of tiny gradients.
    ("rounded_loss", BF16): (0.05, 5.5e-3),
    ("rounded_loss", F16): (3e-3, 3.0e-4),
    ("first_moment", F16): (5e-3, 2.0e-3),
    # One pass of LaunchedTower by type of products and activations; in float64 EagerTower's 20 steps, too. A
    # gradient passes twice as many roundings as a feature.
    ("launched", F64): (1e-12, 1.4e-15),
    ("launched", F32): (1e-5, 6.9e-7),
    ("launched", BF16): (3e-2, 1.1e-2),
    ("launched", F16): (4e-3, 1.8e-3),
    ("launched_grad", F64): (1e-12, 2.4e-15),
    ("launched_grad", F32): (1e-5, 7.8e-7),
    ("launched_grad", BF16): (4e-2, 1.5e-2),
    ("launched_grad", F16): (6e-3, 1.9e-3),
    # 20 of its steps: losses, and 1 − cosine of the features (in float64) of the tokens that were found.
    # The half types are held loosely, for AdamW's reason above.
    ("launched_loss", F64): (1e-12, 1.6e-15),
    ("launched_loss", F32): (1e-5, 2.4e-7),
    ("launched_loss", BF16): (2e-2, 2.3e-3),
    ("launched_loss", F16): (2e-3, 1.3e-3),
    ("launched_cosine", F64): (1e-12, 2.3e-16),
    ("launched_cosine", F32): (1e-8, 1.3e-11),
    ("launched_cosine", BF16): (1e-2, 6.2e-5),
    ("launched_cosine", F16): (5e-3, 1.6e-3),
}


def tolerance(family: str, dtype: str) -> Tolerance:
    return TABLE[family, dtype]
