"""Written by bench/gpu/write_rules.py from the model on paper; do not edit, write it again."""

from __future__ import annotations

Steps = list[tuple[int, str]]  # from this size on, this backend; ascending
Gain = tuple[float, float] | None  # by what a kernel is faster on paper where it is taken
Capability = tuple[int, int]

# Compute capability → operator or loop → for float32 and for half types.
RULES: dict[Capability, dict[str, tuple[Steps, Steps]]] = {
    (8, 0): {
        "prepared_projection": ([(0, "native")], [(0, "native")]),
        "project_normalize": ([(0, "native")], [(0, "native")]),
        "blend_logits": ([(0, "native")], [(0, "native")]),
        "symmetric_kl": ([(0, "native")], [(0, "native")]),
        "topk": ([(0, "native")], [(0, "native")]),
        "support_logits": ([(0, "eager")], [(0, "eager"), (1048576, "triton")]),
        "tower_descent": ([(0, "native")], [(0, "native")]),
        "bridge_training": ([(0, "native")], [(0, "eager")]),
    },
    (8, 9): {
        "prepared_projection": ([(0, "native")], [(0, "native")]),
        "project_normalize": ([(0, "native")], [(0, "native")]),
        "blend_logits": ([(0, "native")], [(0, "native")]),
        "symmetric_kl": ([(0, "native")], [(0, "native")]),
        "topk": ([(0, "native")], [(0, "native")]),
        "support_logits": ([(0, "eager")], [(0, "eager"), (1048576, "triton")]),
        "tower_descent": ([(0, "native")], [(0, "native")]),
        "bridge_training": ([(0, "native")], [(0, "eager")]),
    },
    (9, 0): {
        "prepared_projection": ([(0, "native")], [(0, "native")]),
        "project_normalize": ([(0, "native")], [(0, "native")]),
        "blend_logits": ([(0, "native")], [(0, "native")]),
        "symmetric_kl": ([(0, "native")], [(0, "native")]),
        "topk": ([(0, "native")], [(0, "native")]),
        "support_logits": ([(0, "eager")], [(0, "eager"), (1048576, "triton")]),
        "tower_descent": ([(0, "native")], [(0, "native")]),
        "bridge_training": ([(0, "native")], [(0, "eager")]),
    },
    (10, 0): {
        "prepared_projection": ([(0, "native")], [(0, "native")]),
        "project_normalize": ([(0, "native")], [(0, "native")]),
        "blend_logits": ([(0, "native")], [(0, "native")]),
        "symmetric_kl": ([(0, "native")], [(0, "native")]),
        "topk": ([(0, "native")], [(0, "native")]),
        "support_logits": ([(0, "eager")], [(0, "eager"), (1048576, "triton")]),
        "tower_descent": ([(0, "native")], [(0, "native")]),
        "bridge_training": ([(0, "native")], [(0, "eager")]),
    },
    (12, 0): {
        "prepared_projection": ([(0, "native")], [(0, "native")]),
        "project_normalize": ([(0, "native")], [(0, "native")]),
        "blend_logits": ([(0, "native")], [(0, "native")]),
        "symmetric_kl": ([(0, "native")], [(0, "native")]),
        "topk": ([(0, "native")], [(0, "native")]),
        "support_logits": ([(0, "eager")], [(0, "eager"), (1048576, "triton")]),
        "tower_descent": ([(0, "native")], [(0, "native")]),
        "bridge_training": ([(0, "native")], [(0, "eager")]),
    },
}
GAINS: dict[Capability, dict[str, tuple[Gain, Gain]]] = {
    (8, 0): {
        "prepared_projection": ((1.1, 2.9), (1.5, 4.9)),
        "project_normalize": ((1.1, 2.4), (1.2, 2.4)),
        "blend_logits": ((1.2, 9.3), (1.8, 7.8)),
        "symmetric_kl": ((11.0, 16.0), (12.0, 28.0)),
        "topk": ((1.0, 2.2), (1.1, 8.9)),
        "support_logits": (None, (9.5, 43.0)),
        "tower_descent": ((1.1, 3.8), (1.9, 4.8)),
        "bridge_training": ((1.9, 2.4), None),
    },
    (8, 9): {
        "prepared_projection": ((1.2, 3.2), (1.5, 7.2)),
        "project_normalize": ((1.5, 2.6), (1.4, 2.9)),
        "blend_logits": ((2.2, 8.6), (2.1, 7.3)),
        "symmetric_kl": ((13.0, 22.0), (15.0, 60.0)),
        "topk": ((1.0, 8.5), (1.0, 22.0)),
        "support_logits": (None, (3.7, 9.8)),
        "tower_descent": ((1.7, 3.1), (2.0, 5.0)),
        "bridge_training": ((2.5, 2.9), None),
    },
    (9, 0): {
        "prepared_projection": ((1.1, 3.4), (1.6, 5.0)),
        "project_normalize": ((1.2, 2.4), (1.5, 2.5)),
        "blend_logits": ((1.4, 9.8), (1.5, 8.1)),
        "symmetric_kl": ((8.3, 17.0), (9.2, 25.0)),
        "topk": ((1.0, 2.6), (1.1, 8.2)),
        "support_logits": (None, (5.1, 27.0)),
        "tower_descent": ((1.3, 3.3), (2.1, 4.8)),
        "bridge_training": ((2.4, 2.8), None),
    },
    (10, 0): {
        "prepared_projection": ((1.0, 3.4), (1.4, 4.9)),
        "project_normalize": ((1.1, 2.4), (1.4, 2.3)),
        "blend_logits": ((1.2, 10.0), (1.7, 8.2)),
        "symmetric_kl": ((5.5, 15.0), (6.0, 17.0)),
        "topk": ((1.1, 2.2), (1.1, 4.7)),
        "support_logits": (None, (4.9, 34.0)),
        "tower_descent": ((1.3, 3.3), (2.2, 4.2)),
        "bridge_training": ((2.4, 2.8), None),
    },
    (12, 0): {
        "prepared_projection": ((1.2, 3.2), (1.4, 5.1)),
        "project_normalize": ((1.3, 2.3), (1.3, 2.3)),
        "blend_logits": ((1.9, 9.2), (1.6, 7.7)),
        "symmetric_kl": ((8.8, 17.0), (13.0, 32.0)),
        "topk": ((1.0, 4.9), (1.0, 7.8)),
        "support_logits": (None, (4.0, 12.0)),
        "tower_descent": ((1.5, 3.2), (1.8, 4.9)),
        "bridge_training": ((2.5, 2.9), None),
    },
}
