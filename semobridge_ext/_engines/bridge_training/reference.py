"""Oracle of bridge_training: SeMoBridge-T's loss as its authors compute it (arXiv 2509.26036; docs/methods.md
§2).

    L = ½·CE_img + ½·½(CE_txtp + CE_txte) + 0.1·CE_cons + 0.1·L_bias

Every bridged shot is made, projected and normalised; autograd does the rest. Tests compare with it, the
benchmark times it as the baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext._ops.project_normalize.reference import scale_rows


def bias_loss(tau: Tensor) -> Tensor:  # [C, T] -> scalar
    """``mean_c (‖τ_c‖ − mean‖τ‖)²`` with a zero gradient at τ_c = 0."""
    square = (tau * tau).sum(dim=1)
    # The root's gradient is infinite at 0; masked before and after, it is defined as 0.
    norms = torch.where(square == 0, torch.zeros_like(square), torch.where(square == 0, 1.0, square).sqrt())
    return ((norms - norms.mean()) ** 2).mean()


def semobridge_t_loss(
    inverse: Tensor,  # [D, T] W⁺, trained
    tau: Tensor | None,  # [C, T] class bias, trained
    text_projection: Tensor,  # [T, D]
    shots: Tensor,  # [M, D] raw features
    labels: Tensor,  # [M] int64, every class present
    text: Tensor,  # [C, D] unit rows t
    hidden: Tensor | None,  # [C, T] unit rows s
    *,
    logit_scale: float = 100.0,
    text_length: float = 1.0,
    weights: LossWeights | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss and its unweighted parts."""
    weights = weights or LossWeights()
    classes = len(text)
    counts = torch.bincount(labels, minlength=classes).unsqueeze(1).to(shots.dtype)

    def class_mean(rows: Tensor) -> Tensor:
        return rows.new_zeros(classes, rows.shape[1]).index_add(0, labels, rows) / counts

    e = shots @ inverse
    if tau is not None:
        e = e + tau[labels]
    embedded = scale_rows(e, text_length)
    bridged = embedded @ text_projection
    prototypes = scale_rows(class_mean(bridged))
    target = torch.arange(classes, device=shots.device)
    parts = {"image": cross_entropy(logit_scale * scale_rows(shots) @ prototypes.T, labels)}
    parts["text_projected"] = cross_entropy(prototypes @ text.T, target)
    if hidden is not None:
        parts["text_embedded"] = cross_entropy(scale_rows(class_mean(embedded)) @ hidden.T, target)
    parts["consistency"] = cross_entropy(scale_rows(bridged) @ prototypes.T, labels)
    if tau is not None:
        parts["bias"] = bias_loss(tau)
    total = sum((getattr(weights, name) * part for name, part in parts.items()), shots.new_zeros(()))
    return total, parts
