"""LaunchedTower: what cpu.py does inside the core, as launches on a device.

    feature(v)              the tower's feature with the vectors v in their positions
    gradient(v, g)          gᵀ·∂feature/∂v, no weight gradients
    descend(v)              AdamW steps on 1 − cos(feature(v), target)

The algorithm is that of csrc/tower_descent/tower_descent.h: cuBLAS products by torch, everything between
them by the pieces of torch.py (PyTorch) or cuda.py (csrc/tower_descent); the residual sum in front of a
norm and the norm are one piece. A CUDA device captures the step once in a graph and replays it; the CPU
runs the same sequence, for tests. No step waits for the device.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.buffers import TABLE, Buffers, Pass
from semobridge_ext._engines.tower_descent.chunk import chunk_samples, free_memory, sample_bytes
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.rows import slot_rows
from semobridge_ext._engines.tower_descent.spec import LearnedRows
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime import adamw
from semobridge_ext.runtime.step_graph import Step, repeatable

_PLANS = 2  # shapes that are kept, with their buffers and graphs
_HALF_SCALE = 6  # float16: the gradient of the loss is scaled to 2^6..2^7 times 1/‖t‖
Hyper = tuple[float, float, float]  # grad_scale, lr, weight_decay


class Plan(Buffers):
    """The step over its buffers, as a sequence of launches."""

    # -- forward -------------------------------------------------------------------------------

    def forward(self) -> None:
        """inputs → features."""
        p, w = self.pieces, self.weights
        if w.norm_pre is not None:
            p.norm(self.raw, None, None, w.norm_pre, self.x0[self.learned], self.pre)
        before: Pass | None = None
        for now in self.passes:
            self._forward_layer(now, before)
            before = now
        assert before is not None
        delta = self._take("delta", self.samples, self.width)
        if w.norm_final is None:
            p.add(before.middle, delta, self.last)
        else:
            p.norm(before.middle, delta, self.last, w.norm_final, self.normed, self.final)
        if w.projection is not None:
            p.product(self.normed, w.projection, self.ends.features)

    def _forward_layer(self, now: Pass, before: Pass | None) -> None:
        p, layer, out = self.pieces, now.layer, now.out_rows
        y = self._take("y", self.all_rows, self.width)
        o = self._take("o", out, self.width)
        delta = self._take("delta", out, self.width)
        if before is None:
            p.norm(now.x[now.rows], None, None, layer.norm1, y[now.rows], now.norm1)
        else:
            moved = self._take("delta", self.all_rows, self.width)
            p.norm(before.middle, moved, now.x, layer.norm1, y, now.norm1)
        p.product(y[now.rows], layer.qkv, now.qkv[now.rows, now.projected])
        p.attention(now.attention, o)
        if layer.query is None:
            p.product(o, layer.out, delta)
            p.norm(now.x[:out], delta, now.middle, layer.norm2, y[:out], now.norm2)
        else:
            p.product(o, layer.out, now.middle)
            p.norm(now.middle, None, None, layer.norm2, y[:out], now.norm2)
        p.product(y[:out], layer.fc, now.h)
        hidden = self._take("hidden", *now.h.shape)
        p.activate(now.h, hidden)
        p.product(hidden, layer.proj, delta)

    # -- backward --------------------------------------------------------------------------------

    def backward(self) -> None:
        """grad_features → grad of the inputs."""
        p, w, e = self.pieces, self.weights, self.ends
        grad = e.grad_features
        if w.projection is not None:
            grad = self._take("grad", self.samples, self.width)
            p.product_grad(e.grad_features, w.projection, grad)
        if w.norm_final is not None:
            p.norm_grad(grad, None, w.norm_final, self.final, self.last, self.dx[: self.samples])
            grad = self.dx[: self.samples]
        for now in reversed(self.passes):
            self._backward_layer(now, grad)
            grad = self.dx
        if w.norm_pre is not None:
            p.norm_grad(self.dx[self.learned], None, w.norm_pre, self.pre, self.raw, self.grad_raw)

    def _backward_layer(self, now: Pass, grad: Tensor) -> None:
        p, layer, out = self.pieces, now.layer, now.out_rows
        hidden = self._take("hidden", *now.h.shape)
        da = self._take("da", self.all_rows, self.width)
        dqkv = self._take("dqkv", self.all_rows, 3 * self.width)
        middle = self._take("pooled dm", out, self.width) if now.residual is None else now.residual[:out]
        p.product_grad(grad, layer.proj, hidden)
        p.activate_grad(hidden, now.h)
        p.product_grad(hidden, layer.fc, da[:out])
        p.norm_grad(da[:out], grad, layer.norm2, now.norm2, now.middle, middle)
        p.product_grad(middle, layer.out, da[:out])
        p.attention_grad(now.attention, da[:out], dqkv)
        p.product_grad(dqkv[now.rows, now.projected], layer.qkv, da[now.rows])
        residual = None if now.residual is None else now.residual[now.rows]
        p.norm_grad(da[now.rows], residual, layer.norm1, now.norm1, now.x[now.rows], self.dx[now.rows])

    # -- the step ------------------------------------------------------------------------------------

    def step(self) -> None:
        """Loss and gradient of the inputs as they are, AdamW, the inputs of the next step."""
        self.forward()
        self.pieces.cosine_loss(self.ends)
        self.backward()
        self.pieces.adamw(self.ends)


class LaunchedTower(TowerEngine):
    """Learned rows in a frozen tower, on tensors of ``compute`` on the tower's device.

    Args:
        weights: several templates may share them.
        rows: what is learned and what stands around it.
        pieces: TorchTowerPieces, or CudaTowerPieces for the kernels of a build with CUDA.
        plans: makes the step of a number of samples: `Plan`, or few_rows.py's choice of launches.
        capture: stands in for the CUDA graph (see runtime/step_graph.py).

    Raises:
        ValueError: no position is learned, or a causal tower's pooled position sees none.

    Numerics: float32 products follow torch's own setting of TF32. In float16 the gradient is carried times
        a power of two. Bits may depend on the batch: cuBLAS chooses its kernels by shape.

    Memory: the activations of one pass for the samples of a call, for each of the last 2 batch sizes.

    Example:
        >>> import torch, open_clip
        >>> from semobridge_ext import clip, ops
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> tower, rows = clip.text_tower(open_clip.CLIP(16, vision, text), "a photo of {}", num_tokens=2)
        >>> engine = ops.LaunchedTower(ops.LaunchedWeights(tower), rows)
        >>> engine.features(torch.zeros(3, 2, 32)).shape
        torch.Size([3, 16])
    """

    def __init__(
        self,
        weights: LaunchedWeights,
        rows: LearnedRows,
        *,
        pieces: type[TorchTowerPieces] = TorchTowerPieces,
        plans: Callable[..., Plan] = Plan,
        capture: Callable[[Step, torch.device], Step] | None = None,
    ) -> None:
        tower = weights.tower
        self.weights, self.compute, self.stored = weights, weights.compute, weights.stored
        self.vectors, self.width, self.dim = rows.vectors, tower.width, tower.features
        self.device = tower.device
        self.kind = "torch" if pieces is TorchTowerPieces else "native"
        with self._plainly():
            self.rows = slot_rows(tower, rows, self.compute, self.stored)
        self._sample = sample_bytes(tower, rows, self.stored, kernels=pieces is not TorchTowerPieces)
        self.constants = self.rows.base.shape[1]  # 1, or the number of samples
        self._pieces, self._plan_of, self._capture = pieces, plans, capture
        self._plans: OrderedDict[int, tuple[Plan, dict[Hyper, Step]]] = OrderedDict()

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        kind = "cpu" if self.device.type == "meta" else self.device.type
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            yield

    def plan(self, samples: int) -> tuple[Plan, dict[Hyper, Step]]:
        """The step over buffers for at least this many samples, and its replays by their settings.

        Sizes are rounded up by at most an eighth, so that a batch that early stopping thins out does not
        need a new graph each time.
        """
        if self.constants not in (1, samples):
            raise ValueError(
                f"LaunchedTower: tokens must have {self.constants} samples, as the constants of rows have, "
                f"got {samples}; pass one sample for each"
            )
        unit = 1 << max(samples.bit_length() - 4, 0)
        size = samples if self.constants > 1 else -(-samples // unit) * unit
        if size in self._plans:
            self._plans.move_to_end(size)
        else:
            while len(self._plans) >= _PLANS:
                self._plans.popitem(last=False)
            self._plans[size] = self._plan_of(self.weights, self.rows, size, self._pieces), {}
        return self._plans[size]

    def chunk(self) -> int | None:
        if self.device.type != "cuda":
            return None
        return chunk_samples(self._sample, len(self.rows.source), free_memory(self.device))

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        n = len(tokens)
        if n == 0:
            return tokens.new_empty(0, self.dim)
        with self._plainly():
            plan = self.plan(n)[0]
            plan.ends.tokens[:n].copy_(tokens)
            plan.pieces.write_inputs(plan.ends)
            plan.forward()
            out = plan.ends.features[:n].to(self.compute, copy=True)
            return torch.nn.functional.normalize(out, dim=-1) if unit else out

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D] with respect to features(unit=False)
    ) -> Tensor:  # [S, R, T]
        n = len(tokens)
        if n == 0:
            return torch.zeros_like(tokens)
        self.features(tokens)
        with self._plainly():
            plan = self.plan(n)[0]
            grad = grad_features.to(self.compute)
            scale = torch.ones_like(grad[:, :1])
            if self.stored == torch.float16:
                largest = grad.abs().amax(1, keepdim=True)
                scale = torch.exp2(-torch.log2(largest).floor()).nan_to_num(1.0, 1.0, 1.0)
            plan.ends.grad_features[:n].copy_(grad * scale)
            plan.backward()
            plan.ends.grad_factor = 1.0
            return plan.pieces.gather(plan.ends)[:n] / scale[:, :, None]

    def descend(
        self,
        tokens: Tensor,  # [S, R, T], updated
        exp_avg: Tensor,  # [S, R, T], updated
        exp_avg_sq: Tensor,  # [S, R, T], updated
        targets: Tensor,  # [S, D] unit rows
        step_begin: int,
        step_end: int,
        *,
        grad_scale: float,
        lr: float,
        weight_decay: float,
        record_steps: tuple[int, ...] = (),
        recorded: Tensor | None = None,  # [len(record_steps), S, D], written
    ) -> Tensor:  # [steps, S]
        n, steps = len(tokens), max(step_end - step_begin, 0)
        losses = torch.empty(steps, n, dtype=self.compute, device=self.device)
        if losses.numel() == 0:
            return losses
        with self._plainly():
            plan, captured = self.plan(n)
            e, hyper = plan.ends, (grad_scale, lr, weight_decay)
            own = [(e.tokens[:n], tokens), (e.exp_avg[:n], exp_avg), (e.exp_avg_sq[:n], exp_avg_sq)]
            for kept, given in own:
                kept.copy_(given)
            self._aim(plan, n, targets, *hyper)
            for begin in range(step_begin, step_end, TABLE):
                count = min(TABLE, step_end - begin)
                self._set_rates(plan, begin, count, lr)
                if hyper not in captured:
                    captured.clear()
                    captured[hyper] = repeatable(plan.step, plan.state, self.device, capture=self._capture)
                for i in range(count):
                    captured[hyper]()
                    if recorded is not None and begin + i in record_steps:
                        recorded[record_steps.index(begin + i)].copy_(e.unit[:n])
                losses[begin - step_begin :][:count] = e.losses[:count, :n]
            for kept, given in own:
                given.copy_(kept)
        return losses

    def _aim(
        self, plan: Plan, n: int, targets: Tensor, grad_scale: float, lr: float, weight_decay: float
    ) -> None:
        """Targets, scales and the first inputs; rows past n are filler without a gradient."""
        e, power = plan.ends, 1.0
        if self.stored == torch.float16 and grad_scale > 0:
            power = 2.0 ** (_HALF_SCALE - math.floor(math.log2(grad_scale)))
        e.grad_scale, e.grad_factor, e.lr, e.weight_decay = grad_scale * power, 1 / power, lr, weight_decay
        e.targets.zero_()
        e.targets[:n].copy_(targets)
        e.live.copy_((e.targets != 0).any(1, keepdim=True)).mul_(e.grad_scale)
        plan.pieces.write_inputs(e)

    def _set_rates(self, plan: Plan, begin: int, count: int, lr: float) -> None:
        """The tables of AdamW's bias corrections for steps [begin, begin + count), and the count to 0."""
        table = list(zip(*(adamw.corrections(lr, begin + i + 1) for i in range(count)), strict=True))
        # From pageable memory: on its way when the call returns, and the host does not wait.
        plan.ends.rates[:, :count].copy_(torch.tensor(table, dtype=self.compute), non_blocking=True)
        plan.ends.step.zero_()
