"""bridging.py: the identities of docs/methods.md §1, every form against the paper's chain, gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.bridging import fold as bridge_fold
from tests.support.assertions import assert_close, assert_figures, assert_row_relative, assert_same_bits
from tests.support.projections import ATOL, OPTIONS, chain, gaussian, spectrum, with_rank
from tests.support.samples import DTYPES

SHAPES = {"square": (512, 512), "wide": (512, 1024), "tall": (768, 512)}  # [T, D], CLIP's own
SMALL = {"square": (96, 96), "wide": (96, 160), "tall": (130, 96)}
KINDS = {
    "gaussian": gaussian,
    "rank-64": lambda t, d: with_rank(t, d, 64),
    "half-rank": lambda t, d: with_rank(t, d, min(t, d) // 2),
    "nearly-full-rank": lambda t, d: with_rank(t, d, min(t, d) - 20),
    "full-rank": lambda t, d: with_rank(t, d, min(t, d)),
    "condition-1e5": lambda t, d: with_rank(t, d, min(t, d) - 7, condition=1e5),
}


# -- the statement: equal to the chain to 1e-6 in float32 -------------------------------------


def _cases() -> list[tuple[str, str, tuple[int, int]]]:
    full_size = [(s, k, SHAPES[s]) for s in SHAPES for k in ("gaussian", "rank-64", "condition-1e5")]
    return full_size + [(s, k, SMALL[s]) for s in SMALL for k in KINDS]


@pytest.mark.parametrize("shape,kind,size", _cases())
def test_float32_equals_the_chain_to_1e_6(shape: str, kind: str, size: tuple[int, int]):
    w = KINDS[kind](*size)
    inverse = torch.linalg.pinv(w.double(), atol=ATOL, rtol=0.0)
    b = sb.Bridge(w, text_length=9.5)
    for n in (1, 57):
        f = torch.randn(n, w.shape[1]) * 10  # raw features: about as long as ViT-B/32's
        for options in OPTIONS:
            want = chain(f, w, inverse=inverse, text_length=9.5, **options)
            if options == {"project": False, "normalize": False}:
                assert want.norm(dim=-1).mean() == pytest.approx(9.5)
            if options == {"project": False, "normalize": True}:
                want = want / want.norm(dim=-1, keepdim=True)
            worst = assert_row_relative(
                sb.bridge(f, bridge=b, **options), want, "bridge_row", context=f"{options}"
            )
            print(f"{shape} {kind} n={n} {options}: {worst:.2e}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rank", [3, 20, 47, 48])
def test_every_dtype_and_form(rank: int, options: dict, dtype: torch.dtype, isa: str):
    w = with_rank(64, 48, rank)
    b = sb.Bridge(w, text_length=2.5)
    f = torch.randn(61, 48).to(dtype)
    got = sb.bridge(f, bridge=b, **options)
    assert got.dtype is dtype
    # W⁺ itself is kept in float32; W⁺W is folded in float64.
    inverse = b.inverse if not options["project"] and dtype is torch.float64 else None
    want = chain(f, w, inverse=inverse, text_length=2.5, **options)
    assert_close(got, want, "bridge", context=f"rank {rank} {isa}")


def test_which_form_is_used(monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[tuple[int, ...], bool]] = []

    class Spy(bridge_fold.Projection):
        __slots__ = ()

        def __init__(self, first, second=None, **options):
            made.append((tuple(first.shape), options.get("residual", False)))
            super().__init__(first, second, **options)

    monkeypatch.setattr(bridge_fold, "Projection", Spy)
    expected = {
        4: ((40, 4), False),  # x V_r V_rᵀ
        36: ((40, 4), True),  # x − x V_d V_dᵀ
        20: ((40, 40), False),  # the folded projector: two thin products would cost as much
        40: ((40, 1), True),  # nothing dropped: only the norm is left
    }
    f = torch.randn(70, 40)
    for rank, form in expected.items():
        w = with_rank(50, 40, rank)
        b = sb.Bridge(w)
        assert b.rank == rank
        assert_close(b(f), chain(f, w), "bridge", context=f"rank {rank}")
        assert made.pop() == form and not made, f"rank {rank}"
    b = sb.Bridge(with_rank(50, 40, 4))
    with torch.no_grad():
        b.inverse.mul_(1.5).add_(0.01)
    b(f)
    assert made.pop() == ((40, 40), False), "a trained inverse has no thin form"


# -- identities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape,rank", [((20, 12), 5), ((12, 20), 11), ((12, 12), 12), ((1, 7), 1)])
def test_projector_and_inverse(shape: tuple[int, int], rank: int):
    w = with_rank(*shape, rank)
    b = sb.Bridge(w.double())
    wd = w.double()
    # The kept right singular vectors are the eigenvectors of WᵀW with eigenvalue above atol².
    values, vectors = torch.linalg.eigh(wd.T @ wd)
    kept = vectors[:, values > ATOL**2]
    assert b.rank == kept.shape[1] == rank
    projector, inverse = kept @ kept.T, torch.linalg.pinv(wd, atol=ATOL, rtol=0.0)
    for got in (b.projector, b.projector.T, b.projector @ b.projector, b.inverse @ wd):
        assert_close(got, projector, "matrix")
    for got in (b.inverse, sb.reference.pinv(wd, ATOL)):
        assert_close(got, inverse, "matrix")


def test_length_cancels_where_the_result_is_normalized():
    w, f = with_rank(20, 16, 9), torch.randn(11, 16)
    short, long = sb.Bridge(w), sb.Bridge(w, text_length=7.0)
    assert_same_bits(long(f), short(f))
    assert_same_bits(long(f, project=False), short(f, project=False))
    assert_close(long(f, normalize=False), 7.0 * chain(f, w, normalize=False), "bridge")
    lengths = long(f, project=False, normalize=False).norm(dim=-1)
    assert_figures(lengths, torch.full((11,), 7.0), "length", dtype=torch.float32)


def test_similarities_to_fixed_rows():
    """docs/methods.md §1, identities 2 and 3."""
    w = with_rank(20, 16, 9)
    f, fixed = torch.randn(11, 16).double(), torch.randn(5, 16).double()
    _, s, vh = torch.linalg.svd(w.double())
    v = vh[:9].T
    inverse = torch.linalg.pinv(w.double(), atol=ATOL, rtol=0.0)
    assert_close((f @ inverse).norm(dim=-1), (f @ v / s[:9]).norm(dim=-1), "matrix")
    cosine = torch.nn.functional.normalize(sb.Bridge(w.double())(f)) @ torch.nn.functional.normalize(fixed).T
    want = f @ (v @ v.T @ fixed.T) / ((f @ v).norm(dim=-1, keepdim=True) * fixed.norm(dim=-1))
    assert_close(cosine, want, "matrix")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_reference_is_the_chain(options: dict):
    w, f, tau = with_rank(20, 16, 9).double(), torch.randn(3, 4, 16).double(), torch.randn(20).double()
    for bias in (None, tau):
        got = sb.reference.bridge(f, w, class_bias=bias, text_length=3.0, **options)
        assert_close(got, chain(f, w, class_bias=bias, text_length=3.0, **options), "chain")


@given(n=st.integers(1, 40), d=st.integers(2, 40), data=st.data())
def test_permutation_scale_idempotence_chunks(n: int, d: int, data: st.DataObject):
    torch.manual_seed(n * 101 + d)
    w = with_rank(d + 3, d, data.draw(st.integers(1, d)))
    b = sb.Bridge(w)
    f = torch.randn(n, d)
    whole = sb.bridge(f, bridge=b)
    order = torch.randperm(n)
    assert_same_bits(sb.bridge(f[order], bridge=b), whole[order], "permuted rows")
    assert_same_bits(sb.bridge(f * 2.0 ** data.draw(st.integers(-15, 15)), bridge=b), whole, "scaled rows")
    cut = data.draw(st.integers(0, n))
    parts = [sb.bridge(f[:cut], bridge=b), sb.bridge(f[cut:], bridge=b)]
    assert_same_bits(torch.cat(parts), whole, f"cut at {cut}")
    factor = data.draw(st.floats(1e-3, 1e3))
    for rows, context in ((f * factor, f"rows times {factor}"), (whole, "bridged twice")):
        assert_row_relative(sb.bridge(rows, bridge=b), chain(f, w), "bridge_kept", context=context)


# -- class bias, a trained inverse, layouts ----------------------------------------------------------


def _bias_cases() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """features, bias, and the bias spelled out for broadcasting."""
    c, k, t, d = 5, 3, 20, 16
    vector, rows, full = torch.randn(t), torch.randn(c, t), torch.randn(c, k, t)
    return {
        "one for all": (torch.randn(c, d), vector, vector),
        "one for all, one image": (torch.randn(d), vector, vector),
        "row per image": (torch.randn(c, d), rows, rows),
        "row per class, shots": (torch.randn(c, k, d), rows, rows[:, None, :]),
        "row per class, shots and views": (torch.randn(c, k, 2, d), rows, rows[:, None, None, :]),
        "full": (torch.randn(c, k, d), full, full),
        "expanded": (torch.randn(c, k, d), rows[:, None].expand(c, k, t), rows[:, None, :]),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", _bias_cases())
def test_class_bias(case: str, options: dict, dtype: torch.dtype):
    f, bias, spelled = (t.to(dtype) for t in _bias_cases()[case])
    w = with_rank(20, 16, 9)
    b = sb.Bridge(w, text_length=4.0)
    got = sb.bridge(f, bridge=b, class_bias=bias, **options)
    length = 1.0 if options == {"project": False, "normalize": True} else 4.0
    want = chain(f, w, inverse=b.inverse, class_bias=spelled, text_length=length, **options)
    assert got.dtype is dtype
    assert_close(got, want.detach(), "chain", context=case)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_edited_inverse_is_obeyed(options: dict):
    w, f = with_rank(20, 16, 9), torch.randn(33, 16)
    b = sb.Bridge(w, text_length=2.0)
    b(f, **options)  # whatever is prepared here must not survive the edit
    with torch.no_grad():
        b.inverse.add_(torch.randn(16, 20), alpha=0.1)
    length = 1.0 if options == {"project": False, "normalize": True} else 2.0
    want = chain(f, w, inverse=b.inverse.detach(), text_length=length, **options)
    assert_close(b(f, **options), want, "bridge")
    assert_close(b.projector, b.inverse.detach().double() @ w.double(), "op")


def test_training_step_is_seen_by_the_next_call():
    w, f = with_rank(20, 16, 9), torch.randn(33, 16)
    b = sb.Bridge(w)
    b.inverse.requires_grad_()
    optimizer = torch.optim.AdamW(b.parameters(), lr=1e-2)
    target, before = torch.randn(33, 16), b.inverse.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            assert_close(b(f), chain(f, w, inverse=b.inverse), "bridge")
        optimizer.zero_grad()
        (b(f) * target).sum().neg().backward()
        optimizer.step()
    assert (b.inverse.detach() - before).abs().max() > 0.02
    with torch.no_grad():
        assert_close(b(f), chain(f, w, inverse=b.inverse), "bridge")


@pytest.mark.parametrize("layout", ["strided", "expanded", "transposed", "leading", "one", "empty"])
def test_layouts(layout: str):
    w = with_rank(20, 16, 9)
    f = {
        "strided": lambda: torch.randn(10, 40)[::2, 3:19],
        "expanded": lambda: torch.randn(16).expand(7, 16),
        "transposed": lambda: torch.randn(16, 7).T,
        "leading": lambda: torch.randn(2, 3, 5, 16),
        "one": lambda: torch.randn(16),
        "empty": lambda: torch.randn(0, 3, 16),
    }[layout]()
    copy, b = f.clone(), sb.Bridge(w)
    for options in OPTIONS:
        got = sb.bridge(f, bridge=b, **options)
        if layout == "empty":
            assert got.shape == (0, 3, 16 if options["project"] else 20)
        else:
            assert_close(got, chain(f, w, **options), "bridge", context=f"{layout} {options}")
    assert torch.equal(f, copy), "the input was modified"


def test_zero_and_nan_rows(isa: str):
    b = sb.Bridge(with_rank(20, 16, 9))
    f = torch.randn(40, 16)
    clean = {str(o): b(f, **o) for o in OPTIONS}
    f[3], f[5, 2], f[6, 15] = 0, float("nan"), float("inf")
    keep = torch.tensor([i for i in range(40) if i not in (3, 5, 6)])
    for options in OPTIONS:
        got = b(f, **options)
        assert (got[3] == 0).all() and got[5].isnan().all() and got[6].isnan().any()
        assert_same_bits(got[keep], clean[str(options)][keep], f"{options}")


# -- gradients, compile, transforms ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients(options: dict, dtype: torch.dtype):
    w = with_rank(20, 16, 9)
    b = sb.Bridge(w, text_length=3.0)
    b.inverse.requires_grad_()
    f = torch.randn(5, 3, 16).to(dtype).requires_grad_()
    tau = torch.randn(5, 20).to(dtype).requires_grad_()
    got = sb.bridge(f, bridge=b, class_bias=tau, **options)
    weight = torch.randn(got.shape).to(dtype)
    (got * weight).sum().backward()

    wide = [t.detach().double().requires_grad_() for t in (f, b.inverse, tau)]
    length = 1.0 if options == {"project": False, "normalize": True} else 3.0
    want = chain(wide[0], w, inverse=wide[1], class_bias=wide[2][:, None], text_length=length, **options)
    (want * weight.double()).sum().backward()
    for name, mine, other in zip(("features", "inverse", "bias"), (f, b.inverse, tau), wide, strict=True):
        # The inverse is a float32 parameter: its gradient has that dtype, but rows of `dtype` made it.
        family = "op_grad" if dtype in (torch.float32, torch.float64) else "chain"
        bound = torch.float32 if name == "inverse" and dtype is torch.float64 else dtype
        assert_close(mine.grad.flatten(), other.grad.flatten(), family, dtype=bound, context=name)


def test_gradcheck_through_every_argument():
    b = sb.Bridge(with_rank(6, 5, 3).double(), text_length=2.0)
    b.inverse.requires_grad_()
    f = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    tau = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    for options in OPTIONS:
        assert torch.autograd.gradcheck(lambda x, _, t: b(x, class_bias=t, **options), (f, b.inverse, tau))  # noqa: B023


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compile_fullgraph(options: dict):
    torch._dynamo.reset()
    w, f, tau = with_rank(20, 16, 9), torch.randn(5, 16), torch.randn(20)
    b = sb.Bridge(w)
    compiled = torch.compile(
        lambda x, t: (sb.bridge(x, bridge=b, **options), b(x, class_bias=t, **options)),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    plain, biased = compiled(f, tau)
    assert_close(plain, chain(f, w, **options), "chain")
    assert_close(biased, chain(f, w, class_bias=tau, **options), "chain")


def test_function_transforms_autocast_and_inference_mode():
    w, f = with_rank(20, 16, 9), torch.randn(5, 16)
    b, want = sb.Bridge(w), chain(f, w)
    assert_close(torch.func.vmap(b)(f), want, "chain")
    weight = torch.randn(5, 16)
    x = f.double().requires_grad_()
    (chain(x, w) * weight.double()).sum().backward()
    assert_close(torch.func.grad(lambda y: (b(y) * weight).sum())(f), x.grad, "op_grad")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(b(f), want, "bridge")
        assert_close(b(f, class_bias=torch.zeros(20)), want, "chain")
    with torch.inference_mode():
        assert_close(b(f), want, "bridge")
        assert_close(sb.Bridge(w)(f), want, "bridge")


def test_closed_form_at_high_condition_with_bias_in_float64():
    """Unfolded, W⁺ and W are two products: float32 would lose the condition number's digits."""
    w = spectrum(24, 16, 0.6 * torch.logspace(5, 0, 16, dtype=torch.float64)).double()
    f, tau = torch.randn(9, 16).double(), torch.randn(24).double()
    got = sb.Bridge(w)(f, class_bias=tau)
    assert_row_relative(got, chain(f, w, class_bias=tau), "ill_conditioned")
