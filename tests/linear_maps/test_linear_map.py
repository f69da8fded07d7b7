"""linear_map.py: the algebra against step-by-step float64, and what other programs make of the export."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from tests.support.assertions import (
    assert_close,
    assert_figures,
    assert_row_relative,
    assert_same_bits,
)
from tests.support.projections import with_rank
from tests.support.samples import DTYPES

F64 = torch.float64


def unit(x: Tensor) -> Tensor:
    length = x.square().sum(-1, keepdim=True).sqrt()
    return torch.where(length == 0, x, x / length)


def plainly(x: Tensor, *steps: tuple[Tensor, Tensor | None, bool]) -> Tensor:
    """The chain as it is written, in float64."""
    x = x.double()
    for matrix, offset, norm in steps:
        x = x @ matrix.double() + (0 if offset is None else offset.double())
        x = unit(x) if norm else x
    return x


def random_steps(widths: list[int], offsets: list[bool], norms: list[bool]) -> list[tuple]:
    return [
        (torch.randn(a, b), torch.randn(b) if offset else None, norm)
        for a, b, offset, norm in zip(widths, widths[1:], offsets, norms, strict=False)
    ]


def composed(steps: list[tuple]) -> sb.LinearMap:
    return sb.LinearMap.compose(*(sb.LinearMap(m, b, normalize=n) for m, b, n in steps))


# -- application -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_step(dtype: torch.dtype, offset: bool, normalize: bool):
    (step,) = random_steps([13, 9], [offset], [normalize])
    x = torch.randn(3, 7, 13).to(dtype)
    got = sb.LinearMap(*step[:2], normalize=normalize)(x)
    assert got.dtype is dtype
    assert_close(got, plainly(x, step), "op")


@given(st.lists(st.booleans(), min_size=3, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_folding_changes_nothing(offsets: list[bool], norms: list[bool]):
    steps = random_steps([6, 5, 7, 4], offsets, norms)
    chain, x = composed(steps), torch.randn(20, 6, dtype=F64)
    want = plainly(x, *steps)
    folded = chain.fold()
    assert_row_relative(chain(x), want, "linear_map", context="chain")
    assert_row_relative(folded(x), want, "linear_map", context="folded")
    assert not bool(chain(torch.zeros(2, 6))[0].any()) or any(offsets)
    # A norm stays where an offset follows before the next norm, or no norm follows at all.
    kept = 1
    for i in range(2):
        if norms[i]:
            after = range(i + 1, 3)
            end = next((j for j in after if norms[j]), None)
            kept += end is None or any(offsets[j] for j in after if j <= end)
    assert len(folded.steps) == kept
    assert folded.fold() is folded


def test_matrix_of_a_foldable_chain():
    steps = random_steps([6, 5, 4], [True, False], [True, True])
    chain = composed(steps)
    assert_close(chain.matrix, steps[0][0].double() @ steps[1][0].double(), "matrix")
    assert_close(chain.offset, steps[0][1].double() @ steps[1][0].double(), "matrix")
    stuck = composed(random_steps([6, 5, 4], [False, True], [True, True]))
    with pytest.raises(ValueError, match=r"LinearMap.matrix: .* must fold .* got 2 steps.*; read"):
        _ = stuck.matrix
    assert "6→5, norm; 5→4 + offset, norm" in repr(stuck)


def test_rows_are_independent_and_zero_rows_stay():
    map_ = sb.LinearMap(torch.randn(8, 5))
    x = torch.randn(33, 8)
    x[3], x[4, 0] = 0, float("nan")
    got = map_(x)
    assert not got[3].any() and got[4].isnan().all() and torch.isfinite(got[5:]).all()
    assert_same_bits(map_(x[10:11]), got[10:11])
    assert map_(x[:0]).shape == (0, 5) and map_(x[0]).shape == (5,)


def test_gradients():
    map_ = composed(random_steps([5, 4, 3], [True, True], [True, True]))
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(map_, (x,))


def test_copies_hold_their_own_matrix():
    m = torch.randn(4, 4)
    map_, x = sb.LinearMap(m), torch.randn(6, 4)
    want = map_(x)
    m.zero_()
    for twin in (copy.deepcopy(map_), pickle.loads(pickle.dumps(map_)), copy.copy(map_)):
        assert_same_bits(twin(x), want)


# -- the family --------------------------------------------------------------------------------------


def test_bridge_as_a_map():
    b, f = sb.Bridge(with_rank(20, 16, 9)), torch.randn(11, 16, dtype=F64)
    map_ = sb.LinearMap.from_bridge(b)
    w = b.text_projection.double()
    want = unit(f @ torch.linalg.pinv(w, atol=0.3, rtol=0.0) @ w)
    assert_row_relative(map_(f), want, "bridge_row", dtype=torch.float32, context="closed form")
    with torch.no_grad():
        b.inverse.add_(0.1 * torch.randn(16, 20))
    want = unit(f @ b.inverse.detach().double() @ w)
    edited = sb.LinearMap.from_bridge(b)(f)
    assert_row_relative(edited, want, "bridge_row", dtype=torch.float32, context="edited inverse")


@pytest.mark.parametrize("center", [True, False])
def test_pca_is_scikit_learns(center: bool):
    decomposition = pytest.importorskip("sklearn.decomposition")
    rows, x = (
        torch.randn(40, 12, dtype=F64) @ torch.randn(12, 12, dtype=F64) + 1,
        torch.randn(9, 12, dtype=F64),
    )
    fitted = decomposition.PCA(5).fit(rows.numpy())
    other = x.numpy() - (fitted.mean_ if center else 0)
    want = unit(torch.from_numpy(other @ fitted.components_.T))
    got = sb.LinearMap.pca(rows, 5, center=center)(x)
    assert_row_relative(got @ got.T, want @ want.T, "linear_map", context="inner products")
    assert got.shape == (9, 5)


def test_centering_and_whitening():
    rows = torch.randn(500, 6, dtype=F64) @ torch.randn(6, 6, dtype=F64) + 3
    centred = sb.LinearMap.centering(rows.mean(0))(rows)
    assert_row_relative(centred, unit(rows - rows.mean(0)), "linear_map", context="centred")
    white = sb.LinearMap.whitening(rows, shrinkage=0.0).with_norm(False)(rows)
    covariance = torch.from_numpy(np.cov(white.T.numpy()))
    assert_figures(covariance, torch.eye(6), "whitened")
    assert_figures(white.mean(0), torch.zeros(6), "whitened", scale=1.0)
    few = sb.LinearMap.whitening(rows, k=2)
    assert few(rows).shape == (500, 2)


# -- files and other programs ------------------------------------------------------------------------

CHAINS = {
    "one": ([8, 6], [False], [True]),
    "offset": ([8, 6], [True], [True]),
    "plain": ([8, 6], [True], [False]),
    "two": ([8, 8, 5], [True, True], [True, True]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_save_and_load(name: str, tmp_path: Path):
    map_, x = composed(random_steps(*CHAINS[name])), torch.randn(7, 8, dtype=F64)
    map_.save(tmp_path / "map")
    loaded = sb.LinearMap.load(tmp_path / "map")
    assert_same_bits(loaded(x), map_(x))
    assert_same_bits(loaded(x.float()), map_(x.float()))
    data = (tmp_path / "map").read_bytes()
    (tmp_path / "map").write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"LinearMap.load: .*map must be a whole safetensors file"):
        sb.LinearMap.load(tmp_path / "map")
    sb.Bridge(torch.eye(4)).save(tmp_path / "bridge")
    with pytest.raises(ValueError, match=r"must be a 'semobridge-ext linear map 1' file, got format"):
        sb.LinearMap.load(tmp_path / "bridge")
    with pytest.raises(FileNotFoundError, match="existing file"):
        sb.LinearMap.load(tmp_path / "none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_onnx(name: str, dtype: torch.dtype, tmp_path: Path):
    pytest.importorskip("onnx", reason="onnx is not installed; pip install onnx")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    steps = random_steps(*CHAINS[name])
    map_, x = composed(steps), torch.randn(7, 8, dtype=dtype)
    x[2] = 0
    path = tmp_path / "map.onnx"
    map_.to_onnx(path, dtype=dtype)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.numpy()})
    rest = [0, 1, 3, 4, 5, 6]
    want = plainly(x, *steps)
    assert_row_relative(torch.from_numpy(got)[rest], want[rest], "linear_map", context="onnxruntime")
    assert_figures(got[2], want[2], "linear_map", dtype=dtype, scale=1.0, context="zero row")
    back = sb.LinearMap.from_onnx(path)
    assert_same_bits(back(x), map_.fold()(x))


def test_onnx_refusals(tmp_path: Path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; pip install onnx")
    map_ = sb.LinearMap(torch.eye(3))
    with pytest.raises(ValueError, match=r"to_onnx: dtype must be float32 or float64"):
        map_.to_onnx(tmp_path / "m", dtype=torch.float16)
    map_.to_onnx(tmp_path / "m")
    model = onnx.load(str(tmp_path / "m"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "foreign"))
    with pytest.raises(ValueError, match=r"must be a graph that to_onnx wrote, got format None; build"):
        sb.LinearMap.from_onnx(tmp_path / "foreign")
    (tmp_path / "cut").write_bytes((tmp_path / "m").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"damaged or foreign"):
        sb.LinearMap.from_onnx(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match="existing file"):
        sb.LinearMap.from_onnx(tmp_path / "none")


@pytest.mark.parametrize("name", CHAINS)
def test_faiss(name: str):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; pip install faiss-cpu")
    steps = random_steps(*CHAINS[name])
    map_, x = composed(steps), torch.randn(7, 8)
    chain = map_.to_faiss()
    rows = x.numpy()
    for transform in chain:
        rows = transform.apply(rows)
    assert_row_relative(torch.from_numpy(rows), plainly(x, *steps), "linear_map", context="faiss")
    assert_same_bits(sb.LinearMap.from_faiss(chain)(x), map_.fold()(x))
    index = faiss.IndexFlatIP(map_.out_features)
    for transform in reversed(chain):
        index = faiss.IndexPreTransform(transform, index)
    index.add(x.numpy())
    _, found = index.search(x.numpy(), 3)
    assert np.array_equal(found, sb.topk(map_(x), map_(x), 3).indices.numpy())


def test_faiss_foreign_transforms():
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; pip install faiss-cpu")
    rows = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    pca = faiss.PCAMatrix(6, 3)
    with pytest.raises(ValueError, match=r"must be trained, got an untrained PCAMatrix"):
        sb.LinearMap.from_faiss([pca])
    pca.train(rows)
    want = torch.from_numpy(pca.apply(rows)).double()
    ours = sb.LinearMap.from_faiss([pca])(torch.from_numpy(rows))
    assert_row_relative(ours, want, "linear_map", context="PCA")
    norm = faiss.NormalizationTransform(6, 2.0)
    got = sb.LinearMap.from_faiss([norm])(torch.from_numpy(rows))
    assert_row_relative(got, unit(torch.from_numpy(rows).double()), "linear_map", context="norm alone")
    with pytest.raises(TypeError, match=r"be linear transforms or L2 normalisations, got CenteringTransform"):
        sb.LinearMap.from_faiss([faiss.CenteringTransform(6)])
    with pytest.raises(ValueError, match="not be empty"):
        sb.LinearMap.from_faiss([])


# -- refusals ----------------------------------------------------------------------------------------

BAD = [
    (lambda: sb.LinearMap([[1.0]]), TypeError, "matrix must be a torch.Tensor"),
    (lambda: sb.LinearMap(torch.ones(3)), ValueError, "matrix must be 2-D"),
    (lambda: sb.LinearMap(torch.full((2, 2), float("inf"))), ValueError, "matrix must be finite"),
    (lambda: sb.LinearMap(torch.eye(3), torch.ones(2)), ValueError, r"offset must be \[3\]"),
    (lambda: sb.LinearMap(torch.eye(3))(torch.ones(2, 4)), ValueError, "x must have width 3"),
    (lambda: sb.LinearMap(torch.eye(3))(torch.ones(2, 3).long()), TypeError, "x must be float32"),
    (lambda: sb.LinearMap.compose(), ValueError, "maps must hold at least one"),
    (lambda: sb.LinearMap.compose(torch.eye(3)), TypeError, "maps must be LinearMaps"),
    (
        lambda: sb.LinearMap.compose(sb.LinearMap(torch.eye(3)), sb.LinearMap(torch.eye(4))),
        ValueError,
        "maps must fit: a map to width 3 is followed, got one from width 4",
    ),
    (lambda: sb.LinearMap.pca(torch.randn(5, 8), 5), ValueError, r"k must be an int in 1\.\.4"),
    (lambda: sb.LinearMap.pca(torch.randn(1, 8), 1), ValueError, r"rows must be \[N, D\] with N ≥ 2"),
    (lambda: sb.LinearMap.centering(torch.ones(2, 2)), ValueError, r"mean must be \[D\]"),
    (lambda: sb.LinearMap.whitening(torch.randn(9, 4), k=5), ValueError, r"k must lie in 1\.\.4"),
    (lambda: sb.LinearMap.whitening(torch.randn(9, 4), shrinkage=-1), ValueError, "shrinkage must be ≥ 0"),
    (
        lambda: sb.LinearMap.whitening(torch.randn(3, 6), shrinkage=0.0),
        ValueError,
        "rows must have variance everywhere, got 4 directions",
    ),
]


@pytest.mark.parametrize("call,kind,text", BAD, ids=[text for _, _, text in BAD])
def test_refused(call, kind, text):
    with pytest.raises(kind, match=rf"^LinearMap[.a-z]*: {text}") as caught:
        call()
    assert re.search(r"(?s), got .+; \S", str(caught.value))


@pytest.mark.parametrize("which", ["matrix", "offset"])
def test_a_step_written_in_place(which: str):
    """`steps` hands its tensors out: a map computes with what they now hold."""
    x = torch.randn(3, 5)
    map_ = sb.LinearMap(torch.randn(5, 4), torch.randn(4))
    for _ in range(3):
        getattr(map_.steps[0], which).copy_(torch.randn_like(getattr(map_.steps[0], which)))
        y = x.double() @ map_.steps[0].matrix + map_.steps[0].offset
        assert_close(map_(x), y / y.square().sum(-1, keepdim=True).sqrt(), "op")


def test_first_called_in_inference_mode_and_then_differentiated():
    map_ = sb.LinearMap(torch.randn(5, 4))
    with sb.backend("eager"):
        with torch.inference_mode():
            map_(torch.randn(3, 5))
        x = torch.randn(3, 5, requires_grad=True)
        map_(x).sum().backward()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)
