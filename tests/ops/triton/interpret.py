"""`TRITON_INTERPRET=1 python interpret.py [FOLDER [CHECK..]]`: the kernels against float64, errors as JSON.

FOLDER holds the kernel files to check in place of the package's; CHECK names those to run (default: all).
`--each FOLDER` runs the check named by each of its subfolders on the file in there.
With CHECK_DEVICE=cuda in place of the interpreter the same checks run on a GPU.

A program of its own: the interpreter is chosen when the kernels are defined.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.support import comparer, own_kernels, triton_kernels
from tests.support.assertions import assert_figures
from tests.support.assertions import name_of as short
from tests.support.triton_kernels import DTYPES, WORST, close, load, unit


def class_order(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    offsets = torch.zeros(classes + 1, dtype=torch.int64)
    offsets[1:] = torch.bincount(labels, minlength=classes).cumsum(0)
    return torch.argsort(labels, stable=True), offsets


def check_support_logits() -> None:
    support = load("support_logits")
    # queries, keys, width, classes, sharpness, splits: a class over all splits, many classes in a block,
    # rows of one part and of two, whole and odd ones
    shapes = ((1, 5, 8, 3, 1.0, 0), (20, 150, 40, 7, 5.5, 3), (70, 130, 33, 1, 2.0, 4),
              (5, 100, 48, 60, 2.0, 5), (3, 90, 32, 2, 2.0, 1))  # fmt: skip
    for dtype in (*DTYPES, None):
        for n, s, d, classes, beta, splits in shapes:
            if n == 70 and dtype is torch.bfloat16:
                continue  # slow, and like float16
            q, k = unit(n, d, dtype or torch.float32, 3), unit(s, d, dtype or torch.float16)
            labels = torch.randint(0, max(1, classes - 1), (s,))  # the last class has no key
            labels[labels == 1] = 0  # nor has the second
            weights = torch.rand(s) + 0.1
            order, offsets = class_order(labels, classes)
            for w in (None, weights):
                term = torch.exp(-beta * (1 - q.double() @ k.double().T))
                term = term if w is None else term * w.double()
                want = torch.zeros(n, classes, dtype=torch.float64).index_add_(1, labels, term)
                got = support.launch_support_logits_fwd(q, k, order, offsets, beta, w, splits)
                close(f"support_logits from {short(dtype) if dtype else 'mixed'}", got, want)
                assert (got[:, torch.bincount(labels, minlength=classes) == 0] == 0).all()
            in_order = support.launch_support_logits_fwd(
                q, k[order], None, offsets, beta, weights[order], splits
            )
            assert torch.equal(in_order, got), "an order and keys that lie so differ"
    none = support.launch_support_logits_fwd(q[:0], k, order, offsets, beta, None)
    assert none.shape == (0, classes)
    for dtype in DTYPES[:2]:
        q, k = unit(20, 40, dtype), unit(150, 40, dtype)
        labels = torch.arange(150) % 7
        order, offsets = class_order(labels, 7)
        clean = support.launch_support_logits_fwd(q, k, order, offsets, 1.0, None, 4)
        for splits in (1, 4):  # labels out of range lie before the first and after the last offset
            some = support.launch_support_logits_fwd(q, k, order, offsets[1:-1], 1.0, None, splits)
            close(f"support_logits from {short(dtype)}", some, clean[:, 1:-1].double())
        q[4, 7] = float("nan")
        k[2, 0] = float("nan")  # of class 2
        got = support.launch_support_logits_fwd(q, k, order, offsets, 1.0, None, 4)
        spoilt = torch.zeros(20, 7, dtype=torch.bool)
        spoilt[4], spoilt[:, 2] = True, True
        assert torch.equal(got.isnan(), spoilt), "NaN left its query or its key's class"
        assert torch.equal(got[~spoilt], clean[~spoilt]), "NaN moved other sums"


def check_support_logits_bwd() -> None:
    bwd = load("support_logits_bwd")
    for dtype in (*DTYPES, None):
        rounded = dtype in (torch.float16, torch.bfloat16)  # by TF32; with a float32 operand nothing is lost
        for n, s, d, classes, beta in ((35, 40, 320, 4, 2.0), (3, 70, 512, 3, 2.0), (1, 5, 8, 3, 1.0),
                                     (35, 70, 40, 7, 5.5), (3, 520, 130, 2, 2.0)):  # fmt: skip
            if n == 3 and dtype is torch.bfloat16:
                continue  # slow, and like float16
            if d >= 320 and dtype not in (torch.float16, torch.bfloat16):
                continue  # float32 rows do not stay
            q, k = unit(n, d, dtype or torch.float32, 3), unit(s, d, dtype or torch.float16)
            labels, grad = torch.randint(0, classes, (s,)), torch.randn(classes, n).T
            for w in (None, torch.rand(s) + 0.1):
                leaves = [t.double().requires_grad_() for t in (q, k, torch.ones(s) if w is None else w)]
                term = torch.exp(-beta * (1 - leaves[0] @ leaves[1].T)) * leaves[2]
                out = torch.zeros(n, classes, dtype=torch.float64).index_add(1, labels, term)
                wants = torch.autograd.grad(out, leaves, grad.double())
                gots = bwd.launch_support_logits_bwd(grad, q, k, labels, beta, w, True, True, True)
                for name, got, want in zip(("queries", "keys", "weights"), gots, wants, strict=True):
                    kind = short(dtype) if dtype else "mixed"
                    shown = want.unsqueeze(0) if want.dim() == 1 else want
                    family = "tf32_grad" if rounded and name != "weights" else "kernel"
                    close(f"support_logits grad {name} from {kind}", got.view(shown.shape), shown, family)
    some = bwd.launch_support_logits_bwd(grad, q, k, labels, beta, w, False, False, True)
    assert some[0].numel() == some[1].numel() == 0 and torch.equal(some[2], gots[2])
    few = bwd.launch_support_logits_bwd(grad[:0], q[:0], k, labels, beta, w, True, True, True)
    assert few[0].shape == (0, d) and (few[1] == 0).all() and (few[2] == 0).all()
    foreign = labels.clone()
    foreign[::7], foreign[1::7] = -1, classes
    dropped = bwd.launch_support_logits_bwd(grad, q, k, foreign, beta, w, False, True, True)
    outside = (foreign < 0) | (foreign >= classes)
    assert (dropped[1][outside] == 0).all() and (dropped[2][outside] == 0).all(), "labels out of range"
    q[1, 3] = float("nan")
    gots = bwd.launch_support_logits_bwd(grad, q, k, labels, beta, w, True, False, False)
    assert torch.equal(gots[0].isnan().any(1), torch.tensor([False, True, False])), "NaN left its row"


def check_topk() -> None:
    topk = load("topk")
    from semobridge_ext._ops.topk import chunks as cut

    before = cut._SCORES, cut._QUERIES
    try:
        for cut._SCORES, cut._QUERIES in (before, (1, 7)):  # all at once; chunks of 1024 rows, 7 queries
            _check_topk(topk)
    finally:
        cut._SCORES, cut._QUERIES = before


def _check_topk(topk) -> None:
    nan, inf = float("nan"), float("inf")
    for dtype, other in ((torch.float32, torch.float32), (torch.float16, torch.float16),
                         (torch.bfloat16, torch.float16), (torch.float32, torch.bfloat16)):  # fmt: skip
        for n, g, d, k in ((1, 3, 5, 3), (19, 1100, 20, 5), (2, 100, 33, 40), (1, 140, 4, 128)):
            if k > 5 and dtype is not torch.float32:
                continue  # slow, and all alike past the product
            # Small whole numbers: products are exact in any order, and tie.
            q = torch.randint(-3, 4, (n, d + 1)).to(dtype)[:, :d]
            gallery = torch.randint(-3, 4, (g, d)).to(other)
            if g == 1100:
                gallery[1050:, 0], gallery[400, 1], q[3, 2], q[5] = nan, inf, nan, 0
            exclude = torch.randint(-1, g, (n,))
            scores = q.double() @ gallery.double().T
            for left in (None, exclude)[: 1 + (k < g and dtype is torch.float32)]:
                rank = torch.where(scores.isnan(), -inf, scores)
                order = torch.sort(rank, dim=1, descending=True, stable=True).indices
                if left is not None:
                    order = torch.stack(
                        [torch.cat([o[o != e], o[o == e]]) for o, e in zip(order, left, strict=True)]
                    )
                want = order[:, :k]
                got, rows = topk.launch_topk(q, gallery, k, left)
                assert torch.equal(rows, want), f"rows for {dtype}, {other}, k = {k}"
                best = scores.gather(1, want)
                same = (got.double() == best) | (got.isnan() & best.isnan())
                assert got.dtype is torch.float32 and same.all(), "scores"
    q, gallery = torch.randn(5, 24), torch.randn(200, 24)
    got, rows = topk.launch_topk(q, gallery, 7, None)
    want = (q.double() @ gallery.double().T).topk(7)
    assert torch.equal(rows, want.indices)
    close("topk scores", got, want.values)
    assert topk.launch_topk(q[:0], gallery, 7, None)[0].shape == (0, 7)
    assert topk.launch_topk(q, gallery, 0, None)[1].shape == (5, 0)


def check_bridge_training() -> None:
    entropy = load("bridge_training")
    for n, d, c, lowest in ((90, 24, 13, 0), (40, 140, 70, 3), (5, 3, 1, 0), (150, 9, 4, 1)):
        y = torch.sort(torch.randint(lowest, c, (n,))).values
        if c == 13:
            y = y[y != 4]  # a class without rows
        n = len(y)
        f, right, s = torch.randn(n, d + 3)[:, :d], torch.randn(c, d).T, torch.rand(n) + 0.1
        offsets, factor = class_order(y, c)[1], 0.3 / n
        cuts: list = [None]  # as StreamedLoss splits
        cuts += [torch.tensor([0, int(offsets[c // 3]), int(offsets[c // 2]), n])] * (c > 3)
        for add in (None, torch.randn(c, c)):
            raw = f.double() @ right.double()
            logits = (raw if add is None else raw + add.double()[y]) * s.double().unsqueeze(1)
            log_p = torch.log_softmax(logits, dim=1)
            own = torch.nn.functional.one_hot(y, c).double()
            grad = factor * (log_p.exp() - own)
            x = grad * s.double().unsqueeze(1)
            for bounds in cuts:
                whole = entropy.StreamedLoss(f, y, offsets)
                if bounds is not None:
                    whole.bounds = bounds
                    whole.partial = torch.full((len(bounds) - 1, d, c), float("nan"))
                loss, dot = torch.full((2, n), float("nan"))
                z, sums = torch.full((d, 2 * c), 7.0), torch.zeros(c, c)
                whole(right, s, factor, loss, z[:, c:], add, dot, sums)
                assert (z[:, :c] == 7).all(), "columns of another loss were written"
                if c == 1:
                    for rest in (loss, dot):
                        assert_figures(rest, torch.zeros(n), "training_loss", dtype=torch.float32, scale=1.0)
                    continue
                close("cross entropy loss", loss.unsqueeze(0), -factor * (log_p * own).sum(1).unsqueeze(0))
                close("cross entropy dot", dot.unsqueeze(0), (grad * logits).sum(1).unsqueeze(0))
                close("cross entropy grad", z[:, c:], f.double().T @ x)
                total = torch.zeros(c, c, dtype=torch.float64).index_add_(0, y, x)
                close("cross entropy sums", sums[y], total[y])
                assert (sums[torch.bincount(y, minlength=c) == 0] == 0).all()
                plain = torch.full((d, c), 7.0)
                whole(right, s, factor, loss, plain, add)
                assert torch.equal(plain, z[:, c:]), "the gradient depends on what else is asked for"
    f[7, 2] = float("nan")
    before = loss.clone()
    lse = torch.empty(n)
    entropy.launch_logits_cross_entropy_fwd(f, right, y, s, factor, loss, lse, add, dot)
    keep = torch.arange(n) != 7
    assert torch.equal(loss[keep], before[keep]) and loss[7].isnan(), "NaN left its row"
    z = torch.full((d, c), 7.0)
    entropy.launch_logits_cross_entropy_bwd(
        f[:0], right, y[:0], s[:0], factor, lse[:0], torch.tensor([0, 0]), z, z.unsqueeze(0)
    )
    assert (z == 0).all(), "no rows: no gradient"


CHECKS = {name.removeprefix("check_"): f for name, f in globals().items() if name.startswith("check_")}
CHECKS |= own_kernels.functions("check_")


def run_check(name: str) -> None:
    torch.manual_seed(2509)
    CHECKS[name]()


def run_each(parent: Path) -> dict[str, int]:
    """Folders named N-CHECK, each in a process of its own, two at a time: 0 right, 1 wrong, else broken."""
    running: dict[int, str] = {}
    status: dict[str, int] = {}
    waiting = sorted(parent.iterdir())
    while waiting or running:
        if waiting and len(running) < 2:
            triton_kernels.folder = folder = waiting.pop()
            pid = os.fork()
            if pid == 0:
                code = 2
                try:
                    run_check(folder.name.split("-")[1])
                    code = 0
                except AssertionError:
                    code = 1
                finally:
                    os._exit(code)
            running[pid] = folder.name
        else:
            pid, ended = os.wait()
            status[running.pop(pid)] = os.waitstatus_to_exitcode(ended)
    return status


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_device(os.environ.get("CHECK_DEVICE", "cpu"))
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, about infinities and NaN
    if sys.argv[1:2] == ["--each"]:
        importlib.import_module("semobridge_ext.runtime.triton_tuning")  # once, before the processes part
        print(json.dumps(run_each(Path(sys.argv[2]))))
    else:
        triton_kernels.folder = Path(sys.argv[1]) if sys.argv[1:] and sys.argv[1] else None
        for name in sys.argv[2:] or CHECKS:
            run_check(name)
        families = [(family, dtype, worst) for (family, dtype), worst in comparer.WORST.items()]
        print(json.dumps({"worst": WORST, "families": families}))
