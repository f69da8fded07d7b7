"""`TRITON_INTERPRET=1 python dispatch.py`: the public functions under ``backend("triton")``, on CPU tensors.

Results and gradients against float64 oracles, errors as JSON; refusals by their messages.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import project_normalize
from tests.support import comparer
from tests.support.assertions import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORST: dict[str, float] = {}


def near(
    name: str, got: Tensor, want: Tensor, family: str = "kernel", dtype: torch.dtype | None = None
) -> None:
    """tests/support/comparer.py, with the worst error of each name on record."""
    assert (want != 0).double().mean() > 0.5, f"{name}: no signal"
    found = assert_close(got, want, family, dtype=dtype, context=name)
    key = f"{name}/{str(got.dtype).removeprefix('torch.')}"
    WORST[key] = max(WORST.get(key, 0.0), found.beyond)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def check_support() -> None:
    labels = torch.randint(0, 5, (60,))
    for dtype in DTYPES:
        q, k = unit(11, 20).to(dtype).requires_grad_(), unit(60, 20).to(dtype).requires_grad_()
        w = (torch.rand(60) + 0.1).requires_grad_()
        wide = [t.detach().double().requires_grad_() for t in (q, k, w)]
        term = torch.exp(-3.0 * (1 - wide[0] @ wide[1].T)) * wide[2]
        want = torch.zeros(11, 5, dtype=torch.float64).index_add(1, labels, term)
        grad = torch.randn(11, 5)
        with sb.backend("triton"):
            got = sb.support_logits(q, k, labels, 5, beta=3.0, weights=w)
            support = sb.SupportSet(k.detach()[:40], labels[:40], 5, weights=w.detach()[:40])
            support.append(k.detach()[40:], labels[40:], w.detach()[40:])
            with torch.no_grad():
                joined = support.logits(q, beta=3.0)
        near("support_logits", got.detach(), want.detach())
        near("SupportSet", joined, want.detach())
        found = torch.autograd.grad(got, (q, k, w), grad.to(dtype))
        expected = torch.autograd.grad(want, wide, grad.to(dtype).double())
        for name, a, b in zip(("queries", "keys", "weights"), found, expected, strict=True):
            shown = (a, b) if a.dim() > 1 else (a.unsqueeze(0), b.unsqueeze(0))
            near(f"support_logits gradient of {name}", *shown, "op_grad", dtype)


def check_topk() -> None:
    q, gallery = torch.randn(6, 20, requires_grad=True), torch.randn(90, 20, requires_grad=True)
    exclude = torch.arange(6)
    want = (q.detach().double() @ gallery.detach().double().T).index_put(
        (torch.arange(6), exclude), torch.tensor(float("-inf"), dtype=torch.float64)
    )
    with sb.backend("triton"):
        got = sb.topk(q, gallery, 4, exclude=exclude)
        assert sb.topk(q[:0], gallery, 4).indices.shape == (0, 4)
    assert torch.equal(got.indices, want.topk(4).indices)
    near("topk", got.scores.detach(), want.topk(4).values)
    found = torch.autograd.grad(got.scores.sum(), (q, gallery))
    near("topk gradient", found[0], gallery.detach().double()[got.indices].sum(1))


def check_training() -> None:
    """Steps of SeMoBridge-T whose wide losses are streamed, against autograd in float64."""
    from semobridge_ext._engines.bridge_training.reference import semobridge_t_loss
    from semobridge_ext._engines.bridge_training.spec import LossWeights
    from semobridge_ext._engines.bridge_training.step import BridgeTrainer
    from tests.support.graph_recorder import Recorder

    w, shots = torch.randn(10, 12, dtype=torch.float64) * 0.3, torch.randn(23, 12, dtype=torch.float64) + 0.3
    labels = torch.tensor([0] * 4 + [1] + [2] * 9 + [3] * 6 + [4] * 3)
    given = (torch.linalg.pinv(w), w, shots, labels, unit(5, 12), unit(5, 10))
    single = [t.float() if t.is_floating_point() else t for t in given]
    # The oracle reads the rounded numbers, too.
    inverse, w, shots, _, text, hidden = (t.double() for t in single)
    for weights in (LossWeights(), LossWeights(image=0.0), LossWeights(consistency=0.0)):
        for bias in (True, False):
            with sb.backend("triton"):
                trainer = BridgeTrainer(*single, class_bias=bias, weights=weights)
            assert trainer._streamed is not None and trainer.logits.numel() == 0
            leaf = inverse.clone().requires_grad_()
            tau = torch.randn(5, 10).double().requires_grad_() if bias else None
            if tau is not None:
                trainer.parameters["tau"].copy_(tau.detach())
            loss, _ = semobridge_t_loss(leaf, tau, w, shots, labels, text, hidden, weights=weights)
            got = trainer.loss_and_gradients()
            near("SeMoBridge-T loss", got.reshape(1, 1).clone(), loss.detach().reshape(1, 1))
            leaves = [leaf] if tau is None else [leaf, tau]
            for name, want in zip(("inverse", "tau"), torch.autograd.grad(loss, leaves), strict=False):
                near(f"SeMoBridge-T gradient of {name}", trainer.gradients[name], want, "streamed_grad")
    with sb.backend("triton"):
        steps = [BridgeTrainer(*single), BridgeTrainer(*single)]
    for trainer in steps:
        trainer.plan([1e-3] * 6, 0.01)
    recorder = Recorder(no_allocation=False)
    with recorder:  # reads nothing back; the interpreter's own launches are no operators of PyTorch
        recorder.calls = []
        steps[0].step()
    steps[1].step()
    assert torch.equal(steps[0].parameters["inverse"], steps[1].parameters["inverse"])
    try:
        with sb.backend("triton"):
            BridgeTrainer(*given)
    except NotImplementedError as error:
        assert "has no kernel for float64" in str(error)
    else:
        raise AssertionError("float64 was accepted")


def check_operators() -> None:
    """opcheck: schema, fake tensors, gradients' registration; tests/ops/test_fake_cuda.py compiles."""
    from semobridge_ext._ops.support_logits import triton as support_triton
    from semobridge_ext._ops.support_logits import triton_backward as support_bwd_triton
    from semobridge_ext._ops.topk import triton as topk_triton

    q, k, labels = unit(6, 10).float(), unit(30, 10).half(), torch.randint(0, 4, (30,))
    order, offsets = torch.argsort(labels), torch.tensor([0, 7, 15, 22, 30])
    w, grad = torch.rand(30), torch.randn(6, 4)
    plain = ("test_schema", "test_faketensor")
    torch.library.opcheck(support_triton.support_logits_fwd, (q, k, order, offsets, 2.0, w), test_utils=plain)
    needs = (True, False, True)
    torch.library.opcheck(
        support_bwd_triton.support_logits_bwd_launch, (grad, q, k, labels, 2.0, w, *needs), test_utils=plain
    )
    torch.library.opcheck(topk_triton.topk, (q, k, 3, torch.arange(6)), test_utils=plain)
    checked = (*plain, "test_autograd_registration")
    with sb.backend("triton"):
        ops = torch.ops.semobridge
        x = q.clone().requires_grad_()
        arguments = (x, k, labels, w, None, None, 4, 2.0)
        torch.library.opcheck(ops.support_logits, arguments, test_utils=checked)
        arguments = (grad, q, k, labels, w, 2.0, *needs, True)
        torch.library.opcheck(ops.support_logits_bwd, arguments, test_utils=plain)
        torch.library.opcheck(ops.topk, (x, k, 3, None), test_utils=checked)


def refused(call, error: type[Exception], text: str) -> None:
    try:
        with sb.backend("triton"):
            call()
    except error as e:
        assert text in str(e) and "; " in str(e), str(e)
        return
    raise AssertionError(f"not refused: {text}")


def check_refusals() -> None:
    x = torch.randn(3, 8)
    # Multiplied by cuBLAS: a program that holds whole rows reads all of the matrix anew.
    unserved = "backend 'triton' has no kernel for this call; use backend('auto')"
    refused(lambda: project_normalize(x, x.T), NotImplementedError, f"project_normalize: {unserved}")
    refused(lambda: sb.Bridge(torch.eye(8))(x), NotImplementedError, f"bridge: {unserved}")
    refused(lambda: sb.topk(x, torch.randn(200, 8), 129), NotImplementedError, "k > 128; use backend('auto')")
    labels = torch.tensor([0, 1, 4])
    refused(lambda: sb.support_logits(x, x.double(), labels, 5), NotImplementedError, "float64")
    refused(lambda: sb.support_logits(x, x, labels, 4), ValueError, "got 4 at position 2")
    state = sb.build_info()["triton"]
    assert "interpreter" in state and "backend('triton')" in state, state


if __name__ == "__main__":
    torch.set_num_threads(1)
    checks = (
        check_support, check_topk, check_training, check_operators,
        check_refusals,
    )  # fmt: skip
    for check in checks:
        torch.manual_seed(2509)
        check()
    families = [(family, dtype, worst) for (family, dtype), worst in comparer.WORST.items()]
    print(json.dumps({"worst": WORST, "families": families}))
