"""One SeMoBridge-T step by hand: loss, gradients, AdamW (arXiv 2509.26036; METHODS §2).

Rows lie in class order. With B = W F̂ᵀ [T, C], the cheaper exact forms are

    e = f W⁺ + τ_y     h = e WWᵀ     r = ‖e‖     q = ‖eW‖ = sqrt(e·h)     m_c = mean_k e/r
    F̂ = norm(m W)      CE_img  = κ·f F̂ᵀ/‖f‖      CE_cons = (f (W⁺B) + τ_y B)/q

so no bridged shot is ever projected, and both wide losses share their left operand f: one product
forward, [F̂ᵀ | W⁺B], and one backward, Z = fᵀ[G₁ | G₂] (G the gradients with their row scales). Then

    dF̂ = Z₁ᵀ + (W⁺ᵀ Z₂ + τᵀ Y)ᵀ W + text       dW⁺ = Z₂ Bᵀ + fᵀ de      dτ = Y Bᵀ + Σ_k de
    de = (m̄ − u(u·m̄))/(K r) − (Σ_c g l / q²)·h        u = e/r,  m̄ = dm,  Y = Σ_k G₂

which is 3 products of N·T·D and 4 of N·C·D multiply-adds, against 5 and 6 for autograd.
Chunks of rows keep a chunk's logits in cache between the product, the softmax and the next product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._backend import _C, DTYPE_CODES, resolve
from semobridge_ext.reference.training import LossWeights

_CHUNK_VALUES = 1 << 20  # logits of a chunk of rows: 4 MiB
_CHUNK_VALUES_CUDA = 1 << 26  # a GPU gains nothing from a chunk in cache, but pays for every launch


def _normalize_grad(grad: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """The gradient of x from that of x/‖x‖; zero rows get zero."""
    inverse = torch.where(norms == 0, torch.zeros_like(norms), 1 / norms)
    return (grad - unit * (unit * grad).sum(dim=1, keepdim=True)) * inverse


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norms == 0, torch.zeros_like(x), x / norms), norms


class BridgeTrainer:
    """Parameters, AdamW state and workspaces of one run; a step reads nothing back to the host.

    Args:
        inverse: [D, T] initial W⁺; copied. text_projection: [T, D]. shots: [M, D] in class order.
        labels: [M] sorted. text: [C, D] unit rows. hidden: [C, T] unit rows, or None.
        class_bias: train τ. logit_scale: κ. weights: factors of the losses.

    All tensors of one dtype (float32 or float64) and device. Numerics: sums in that dtype, in an order
    that does not depend on the threads; on the CPU by the native core, elsewhere in plain PyTorch.

    Memory: 2·M·T + 2·M, a chunk of logits, and four copies of [D, T] and [C, T].
    """

    def __init__(
        self,
        inverse: Tensor,
        text_projection: Tensor,
        shots: Tensor,
        labels: Tensor,
        text: Tensor,
        hidden: Tensor | None,
        *,
        class_bias: bool = True,
        logit_scale: float = 100.0,
        weights: LossWeights | None = None,
    ) -> None:
        self.weights = weights or LossWeights()
        self.w = text_projection.contiguous()
        self.shots, self.text, self.hidden = shots.contiguous(), text.contiguous(), hidden
        self.gram = self.w @ self.w.T  # WWᵀ
        self.classes = text.shape[0]
        counts = torch.bincount(labels, minlength=self.classes)
        self.labels, self.shots_of = labels, counts.to(shots.dtype).unsqueeze(1)
        self.offsets = torch.zeros(self.classes + 1, dtype=torch.int64)
        torch.cumsum(counts.cpu(), 0, out=self.offsets[1:])
        self.bounds = self.offsets.tolist()
        norms = torch.linalg.vector_norm(shots, dim=1)
        self.image_scale = torch.where(norms == 0, torch.zeros_like(norms), logit_scale / norms)
        self.native = resolve("SeMoBridgeT", shots.device) == "native"
        new = shots.new_empty
        rows, t = len(shots), self.w.shape[0]
        self.parameters = {"inverse": inverse.clone().contiguous()}
        if class_bias:
            self.parameters["tau"] = shots.new_zeros(self.classes, t)
        self.state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.parameters.items()}
        self.gradients = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = 0
        self.e, self.h = new(rows, t), new(rows, t)
        self.r, self.q = new(rows), new(rows)
        self.mean = new(self.classes, t)
        self.row_loss = {"image": new(rows), "consistency": new(rows)}
        self.dot = new(rows)
        self.image_on = self.weights.image != 0
        self.consistency_on = self.weights.consistency != 0
        self._chunks = self._cut()
        longest = max(self.bounds[b] - self.bounds[a] for a, b in self._chunks)
        self.logits = new(longest, self.classes * (self.image_on + self.consistency_on))
        if self.native:
            code = DTYPE_CODES[shots.dtype]
            self._batch = _C.ClassBatch(code, self.offsets.data_ptr(), t)

    def _cut(self) -> list[tuple[int, int]]:
        """Ranges of classes whose logits are about a chunk."""
        width = max(1, self.classes * (self.image_on + self.consistency_on))
        rows = max(64, (_CHUNK_VALUES_CUDA if self.shots.is_cuda else _CHUNK_VALUES) // width)
        chunks, first = [], 0
        for c in range(1, self.classes + 1):
            if c == self.classes or self.bounds[c + 1] - self.bounds[first] > rows:
                chunks.append((first, c))
                first = c
        return chunks

    # -- the steps between the products: the native core's, or plain PyTorch -------------------------

    def _shot_norms(self) -> None:
        tau = self.parameters.get("tau")
        if self.native:
            self._batch.shot_norms(
                0, self.classes, self.e.data_ptr(), 0 if tau is None else tau.data_ptr(), self.r.data_ptr(),
                self.mean.data_ptr(), torch.get_num_threads(),
            )  # fmt: skip
            return
        if tau is not None:
            self.e += tau[self.labels]
        torch.linalg.vector_norm(self.e, dim=1, out=self.r)
        inverse = torch.where(self.r == 0, torch.zeros_like(self.r), 1 / self.r)
        self.mean.zero_().index_add_(0, self.labels, self.e * inverse.unsqueeze(1)).div_(self.shots_of)

    def _shot_dots(self) -> None:
        if self.native:
            self._batch.shot_dots(
                0,
                self.classes,
                self.e.data_ptr(),
                self.h.data_ptr(),
                self.q.data_ptr(),
                torch.get_num_threads(),
            )
            return
        torch.sqrt((self.e * self.h).sum(dim=1).clamp_(min=0), out=self.q)

    def _rows_loss(
        self, chunk: tuple[int, int], x: Tensor, scale: Tensor, factor: float, loss: Tensor,
        add: Tensor | None = None, dot: Tensor | None = None, sums: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Softmax cross-entropy of a chunk's logits, their gradient in place."""
        if self.native:
            pointers = [0 if t is None else t.data_ptr() for t in (add, loss, dot, sums)]
            self._batch.row_loss(
                *chunk, self.classes, x.stride(0), factor / len(self.shots), x.data_ptr(), scale.data_ptr(),
                *pointers, torch.get_num_threads(),
            )  # fmt: skip
            return
        begin, end = self.bounds[chunk[0]], self.bounds[chunk[1]]
        y, row_scale = self.labels[begin:end], scale[begin:end].unsqueeze(1)
        logits = (x if add is None else x + add[y]) * row_scale
        factor = factor / len(self.shots)
        log_p = torch.log_softmax(logits, dim=1)
        loss[begin:end] = -factor * log_p.gather(1, y.unsqueeze(1)).squeeze(1)
        g = log_p.exp_() * factor
        g[torch.arange(len(y), device=y.device), y] -= factor
        if dot is not None:
            dot[begin:end] = (g * logits).sum(dim=1)
        x.copy_(g * row_scale)
        if sums is not None:
            sums.index_add_(0, y, x)

    def _shot_grads(self, grad_mean: Tensor, dot: Tensor | None) -> None:
        tau = self.gradients.get("tau")
        if self.native:
            self._batch.shot_grads(
                0, self.classes, self.e.data_ptr(), self.h.data_ptr(), self.r.data_ptr(), self.q.data_ptr(),
                0 if dot is None else dot.data_ptr(), grad_mean.data_ptr(),
                0 if tau is None else tau.data_ptr(), torch.get_num_threads(),
            )  # fmt: skip
            return
        inverse = torch.where(self.r == 0, torch.zeros_like(self.r), 1 / self.r).unsqueeze(1)
        unit, m = self.e * inverse, (grad_mean / self.shots_of)[self.labels]
        grad = (m - unit * (unit * m).sum(dim=1, keepdim=True)) * inverse
        if dot is not None:
            ratio = torch.where(self.q == 0, torch.zeros_like(self.q), dot / self.q.square())
            grad -= ratio.unsqueeze(1) * self.h
        self.h.copy_(grad)
        if tau is not None:
            tau.zero_().index_add_(0, self.labels, self.h)

    # -- loss and gradients --------------------------------------------------------------------------

    def loss_and_gradients(self) -> Tensor:
        """The total loss, a scalar on the device; fills ``gradients``."""
        on, w, inverse = self.weights, self.w, self.parameters["inverse"]
        tau, grad_inverse = self.parameters.get("tau"), self.gradients["inverse"]
        projected = self.class_means() @ w
        hat, hat_norms = _unit(projected)
        grad_hat = torch.zeros_like(hat)
        total = hat.new_zeros(())
        extra = None  # dτ past what the shots give
        dot = None
        if self.consistency_on:
            torch.mm(self.e, self.gram, out=self.h)
            self._shot_dots()
        if self.image_on or self.consistency_on:
            z, sums, back = self._wide(hat, inverse, tau)
            total = total + sum(
                self.row_loss[name].sum() for name in self.row_loss if getattr(self.weights, name) != 0
            )
            if self.image_on:
                grad_hat += z[:, : self.classes].T
            if self.consistency_on:
                z2 = z[:, -self.classes :]
                assert back is not None
                grad_b = inverse.T @ z2
                if tau is not None and sums is not None:
                    grad_b.addmm_(tau.T, sums)
                    extra = sums @ back.T
                torch.mm(z2, back.T, out=grad_inverse)
                grad_hat.addmm_(grad_b.T, w)
                dot = self.dot
        if not self.consistency_on:
            grad_inverse.zero_()
        if on.text_projected != 0:
            loss, grad = _diagonal_loss(hat @ self.text.T, on.text_projected)
            total = total + loss
            grad_hat.addmm_(grad, self.text)
        grad_mean = _normalize_grad(grad_hat, hat, hat_norms) @ w.T
        if on.text_embedded != 0 and self.hidden is not None:
            unit, norms = _unit(self.mean)
            loss, grad = _diagonal_loss(unit @ self.hidden.T, on.text_embedded)
            total = total + loss
            grad_mean += _normalize_grad(grad @ self.hidden, unit, norms)
        self._shot_grads(grad_mean, dot)
        grad_inverse.addmm_(self.shots.T, self.h)
        if tau is not None:
            if extra is not None:
                self.gradients["tau"] += extra
            if on.bias != 0:
                total = total + self._bias(tau)
        return total

    def class_means(self) -> Tensor:  # [C, T]
        """``m_c``, the mean of the unit e of a class, under the present parameters."""
        torch.mm(self.shots, self.parameters["inverse"], out=self.e)
        self._shot_norms()
        return self.mean

    def _wide(
        self, hat: Tensor, inverse: Tensor, tau: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Both losses over N×C logits, chunk by chunk: Z [D, C or 2C], Y [C, C], B [T, C]."""
        c, right, back, add, sums = self.classes, [], None, None, None
        inverse_q = None
        if self.image_on:
            right.append(hat.T)
        if self.consistency_on:
            back = self.w @ hat.T
            right.append(inverse @ back)
            inverse_q = torch.where(self.q == 0, torch.zeros_like(self.q), 1 / self.q)
            if tau is not None:
                add, sums = tau @ back, hat.new_zeros(c, c)
        operand = torch.cat(right, dim=1) if len(right) > 1 else right[0]
        z = hat.new_zeros(self.shots.shape[1], operand.shape[1])
        for chunk in self._chunks:
            begin, end = self.bounds[chunk[0]], self.bounds[chunk[1]]
            f, logits = self.shots[begin:end], self.logits[: end - begin]
            torch.mm(f, operand, out=logits)
            if self.image_on:
                weight = self.weights.image
                self._rows_loss(chunk, logits[:, :c], self.image_scale, weight, self.row_loss["image"])
            if inverse_q is not None:
                self._rows_loss(
                    chunk, logits[:, -c:], inverse_q, self.weights.consistency,
                    self.row_loss["consistency"], add, self.dot, sums,
                )  # fmt: skip
            z.addmm_(f.T, logits)
        return z, sums, back

    def _bias(self, tau: Tensor) -> Tensor:
        """L_bias; its gradient at τ_c = 0 is 0."""
        unit, norms = _unit(tau)
        deviation = norms - norms.mean()
        # The mean's own derivative cancels: the deviations sum to zero.
        self.gradients["tau"].add_(unit * deviation, alpha=2 * self.weights.bias / self.classes)
        return self.weights.bias * deviation.square().mean()

    # -- optimiser -----------------------------------------------------------------------------------

    def step(self, rate: float, decay: float) -> Tensor:
        """Loss before the step; then one AdamW step as ``torch.optim.AdamW`` takes it."""
        loss = self.loss_and_gradients()
        self.steps += 1
        for name, p in self.parameters.items():
            first, second = self.state[name]
            g = self.gradients[name]
            if self.native:
                _C.adamw(
                    DTYPE_CODES[p.dtype], p.numel(), p.data_ptr(), g.data_ptr(), first.data_ptr(),
                    second.data_ptr(), rate, decay, 0.9, 0.999, 1e-8, self.steps, torch.get_num_threads(),
                )  # fmt: skip
                continue
            p.mul_(1 - rate * decay)
            first.lerp_(g, 0.1)
            second.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
            root = (second.sqrt() / (1 - 0.999**self.steps) ** 0.5).add_(1e-8)
            p.addcdiv_(first, root, value=-rate / (1 - 0.9**self.steps))
        return loss


def _diagonal_loss(logits: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """``factor·CE(logits, own class)`` of [C, C] logits and its gradient."""
    log_p = torch.log_softmax(logits, dim=1)
    loss = -factor * log_p.diagonal().mean()
    grad = log_p.exp_().mul_(factor / len(logits))
    grad.diagonal().sub_(factor / len(logits))
    return loss, grad
