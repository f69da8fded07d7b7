"""What the pieces of an inversion step are given: a layer's attention, and the two ends of the step.

Letters as in torch.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """One layer's attention: slot-major rows, a shared prefix, and what each query sees."""

    samples: int
    heads: int
    prefix: Tensor | None  # [2, P, T] keys, then values
    visible: tuple[tuple[int, ...], ...]  # per query, the slots that it sees
    constant_query: bool
    qkv: Tensor  # [n·S, 3T]

    @property
    def slots(self) -> int:
        return self.qkv.shape[0] // self.samples

    @property
    def model(self) -> int:
        return self.qkv.shape[1] // 3

    @property
    def prefix_rows(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[1]


@dataclass
class Ends:
    """The two ends of a step: the loss behind the feature, and the learned rows that AdamW moves."""

    features: Tensor  # [S, D] stored
    targets: Tensor  # [S, D] unit rows or zero
    live: Tensor  # [S, 1] the scale of the gradient, 0 where the target is a zero row
    grad_features: Tensor  # [S, D] stored
    losses: Tensor  # [steps, S]
    unit: Tensor  # [S, D]
    step: Tensor  # [1] int64, the row of `losses` and `rates` that is next
    step_now: Tensor  # [1] int64
    rates: Tensor  # [2, steps]: lr / (1 − β1^(i+1)), sqrt(1 − β2^(i+1))
    tokens: Tensor  # [S, R, T]
    exp_avg: Tensor  # [S, R, T]
    exp_avg_sq: Tensor  # [S, R, T]
    grad: Tensor  # [m·S, T] stored
    inputs: Tensor  # [m·S, T] stored
    base: Tensor  # [m, 1 or S, T]
    source: tuple[int, ...]  # [m] which vector a slot adds
    index: Tensor  # [m] int32, the same
    spread: Tensor  # [R, m] ones where a slot adds a vector
    grad_scale: float = 1.0  # of the loss, times 1/grad_factor
    grad_factor: float = 1.0  # a power of two; not 1 where float16 would lose small gradients
    lr: float = 0.0
    weight_decay: float = 0.0

    @property
    def one_each(self) -> bool:
        """Slot i adds vector i, as in every text template."""
        return self.source == tuple(range(self.tokens.shape[1]))
