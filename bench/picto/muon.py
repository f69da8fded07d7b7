"""Muon for the block matrices and AdamW for the rest, as one optimizer step.

Muon (Jordan et al. 2024) moves a matrix along the orthogonalised momentum of its gradient. The
packed query-key-value matrix counts as three. torch.optim.Muon takes one matrix after the other, and
a single small product cannot use two cores; here each core takes its own matrices.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

# Jordan's quintic: fast growth of small singular values, end values within about 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration on [R, C] in bfloat16: singular values go to about 1."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    x = x.mT if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).float()


class MuonAdamW:
    """Both rules behind one `step`; a Muon update has the size 0.2 that AdamW's typically have."""

    def __init__(self, model: torch.nn.Module, *, muon: bool = True, weight_decay: float = 0.1):
        blocks, decayed, plain = [], [], []
        for name, parameter in model.named_parameters():
            if muon and "resblocks" in name and parameter.ndim == 2:
                blocks.append(parameter)
            elif parameter.ndim >= 2 and "embedding" not in name:
                decayed.append(parameter)
            else:
                plain.append(parameter)
        self.blocks, self.weight_decay, self.momentum = blocks, weight_decay, 0.95
        # Matrices this small keep one core busy, not two: each worker takes whole matrices.
        self.workers = ThreadPoolExecutor(torch.get_num_threads(), None, torch.set_num_threads, (1,))
        self.buffers = [torch.zeros_like(p) for p in blocks]
        self.adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            eps=1e-8,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad()
        for block in self.blocks:
            block.grad = None

    @torch.no_grad()
    def step(self, lr: float, muon_lr: float) -> None:
        """One update of everything."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        updates, targets = [], []
        for block, buffer in zip(self.blocks, self.buffers, strict=True):
            buffer.lerp_(block.grad, 1 - self.momentum)
            # [3D, D] holds three square maps.
            parts = 3 if block.shape[0] == 3 * block.shape[1] else 1
            updates += block.grad.lerp(buffer, self.momentum).chunk(parts)
            targets += block.chunk(parts)
        for target, move in zip(targets, self.workers.map(orthogonalise, updates), strict=True):
            target.mul_(1 - muon_lr * self.weight_decay)
            target.add_(move, alpha=-muon_lr * 0.2 * max(target.shape) ** 0.5)

    def state_dict(self) -> dict:
        """All that a resumed run needs."""
        return {"adamw": self.adamw.state_dict(), "buffers": self.buffers}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""
        self.adamw.load_state_dict(state["adamw"])
        self.buffers = state["buffers"]
