"""The last vision block: the model's own features and gradients, a plain loop, files, the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import semobridge_ext as sb
from semobridge_ext import reference
from semobridge_ext.discovery import cache_block_inputs, load_block_inputs, network, vision_block
from semobridge_ext.discovery.network import Sizes
from semobridge_ext.discovery.schedule import epoch_batches
from semobridge_ext.discovery.training import Trainer
from tests.support import towers
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.discovery import SMALL

F64 = torch.float64
FAMILIES = {n: m for n, m in towers.VISION_MODELS.items() if n != "SigLIP timm"}
FAMILIES["timm class token"] = lambda: towers.timm_linear(bias=True)
COUNT = 16
QUICK = ("open_clip", "open_clip quick_gelu")  # the others are built, or imported, for long


def pictures(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, 32, 32, generator=g, dtype=F64)


@functools.cache
def model_of() -> nn.Module:
    return towers.VISION_MODELS["open_clip"]().double()


@functools.cache
def inputs_of() -> Tensor:
    return cache_block_inputs(model_of(), IMAGES, dtype=F64)


IMAGES = pictures(2, COUNT)
LABELS: list[Any] = [i % 5 if i % 5 < 3 and i % 2 else None for i in range(COUNT)]
G = torch.Generator().manual_seed(1)
CONCEPTS = torch.randn(9, towers.D, generator=G, dtype=F64)
TEACHER = torch.randn(COUNT, 6, generator=G, dtype=F64), torch.randn(9, 6, generator=G, dtype=F64)
SETTINGS: dict[str, Any] = {**SMALL, "batch_size": 8, "epochs": 3, "lr": 0.05, "adapter_lr": 0.02}


def fit(checkpoint: Any = None, **changed: Any) -> sb.SpectralGCD:
    given = {"X": inputs_of(), "y": LABELS, "teacher": TEACHER, "model": model_of(), **SETTINGS, **changed}
    x, y, teacher = (given.pop(name) for name in ("X", "y", "teacher"))
    concepts = given.pop("concept_features", CONCEPTS)
    return sb.SpectralGCD(concepts, **given).fit(x, y, teacher=teacher, checkpoint=checkpoint)


def block_features(model: nn.Module, inputs: Tensor) -> Tensor:
    block = vision_block.block_of("test", model)
    return vision_block.features({**block.trained, **block.fixed}, block.facts, inputs)


# -- the forward pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in FAMILIES]
)
def test_features_are_the_models_own(kind: str):
    dtype = towers.exact_dtype(kind)
    model = FAMILIES[kind]().to(dtype)
    images = pictures(2, 3).to(dtype)
    inputs = cache_block_inputs(model, images, dtype=dtype, batch_size=2)
    assert inputs.shape[:3] == (2, 3, 17) and not inputs.requires_grad
    for view, tokens in zip(images, inputs, strict=True):
        with torch.no_grad():
            want = sb.clip.encode_image(model, view).double()
        assert_row_relative(block_features(model, tokens), want, "block_features")


def test_gradients_are_autograds_through_the_model():
    model = towers.VISION_MODELS["open_clip"]().double()
    images, g = pictures(4), torch.Generator().manual_seed(2)
    weights = torch.randn(4, towers.D, generator=g, dtype=F64)
    (model.encode_image(images) * weights).sum().backward()
    block = vision_block.block_of("test", model).to(torch.device("cpu"), F64)
    p = {n: t.requires_grad_() for n, t in block.trained.items()}
    inputs = cache_block_inputs(model, images, dtype=F64)[0]
    (vision_block.features({**p, **block.fixed}, block.facts, inputs) * weights).sum().backward()
    for name, own in parts_of(model).items():
        want = own.grad.T if own.dim() == 2 else own.grad
        assert_figures(p[name].grad, want, "block_grad", context=name)
    assert set(p) == set(parts_of(model))


def parts_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The last block's parameters by our names; matrices are transposed."""
    b: Any = model.visual.transformer.resblocks[-1]
    modules = {
        "norm1": b.ln_1,
        "out": b.attn.out_proj,
        "norm2": b.ln_2,
        "fc": b.mlp.c_fc,
        "proj": b.mlp.c_proj,
    }
    named = {f"block_{n}_{kind}": getattr(m, kind) for n, m in modules.items() for kind in ("weight", "bias")}
    return {
        **named, "block_qkv_weight": b.attn.in_proj_weight, "block_qkv_bias": b.attn.in_proj_bias,
    }  # fmt: skip


# -- the training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("concepts", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_is_that_of_the_model_itself(concepts: bool):
    """torch.optim's SGD on the model's own forward pass from pixels, and the oracle's losses."""
    s = {**sb.SpectralGCD().get_params(), **SETTINGS}
    model = towers.VISION_MODELS["open_clip"]().double()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    k = len(CONCEPTS) if concepts else 0
    sizes = Sizes(towers.D, k, s["width"] if k else towers.D, s["hidden"], s["projection"], 5)
    p = {n: v.requires_grad_() for n, v in network.initial(sizes, False, 0, F64).items()}
    unit, t = reference.scale_rows, s["temperature"]
    parts = parts_of(model)
    groups = [
        {"params": [v], "weight_decay": s["weight_decay"] * (v.dim() > 1), "first": first}
        for tensors, first in ((p, s["lr"]), (parts, s["adapter_lr"]))
        for v in tensors.values()
    ]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=s["momentum"])
    codes = torch.tensor([0 if label is None else label for label in LABELS])
    known = torch.tensor([label is not None for label in LABELS])
    for epoch in range(3):
        for group in sgd.param_groups:
            group["lr"] = group["first"] * (1e-3 + (1 - 1e-3) * (1 + np.cos(np.pi * epoch / 3)) / 2)
        for drawn in epoch_batches(known, 8, 2, 0, epoch):
            seen = torch.cat([IMAGES[drawn[:, 1], drawn[:, 0]], IMAGES[drawn[:, 2], drawn[:, 0]]])
            f = unit(model.encode_image(seen))
            z = f @ unit(CONCEPTS).T / t if k else f
            u = z @ p["concept_weight"].T + p["concept_bias"] if k else f
            out = u
            for layer in ("first", "second", "last"):
                out = linear(out, p[f"{layer}_weight"], p[f"{layer}_bias"])
                out = out if layer == "last" else torch.nn.GELU()(out)
            faces, names = (unit(v) for v in TEACHER)
            teacher = faces[drawn[:, 0]] @ names.T / t if k else z[:8].detach()
            one = reference.gcd_losses(
                unit(u) @ unit(p["prototypes"]).T, out, z, teacher, codes[drawn[:, 0]], known[drawn[:, 0]],
                teacher_temperature=(0.07, 0.04, 0.04)[epoch],
            )  # fmt: skip
            total = 0.65 * (one.distillation + one.entropy + one.contrast)
            total = total + 0.35 * (one.supervised + one.supervised_contrast)
            total = total + one.forward_kl + one.reverse_kl if k else total
            sgd.zero_grad()
            total.backward()
            sgd.step()
    got = fit(**({} if concepts else {"concept_features": None, "teacher": None}))
    for name, want in parts.items():
        assert_figures(got._folded[name], want.T if want.dim() == 2 else want, "block_training", context=name)
        assert float((want.detach() - before[path_of(model, want)]).abs().max()) > 1e-6, name
    assert_figures(got._folded["prototypes"], p["prototypes"], "block_training")
    moved = cache_block_inputs(model, IMAGES[:1], dtype=F64)[0]
    assert_same_bits(moved, inputs_of()[0])  # the blocks before it stayed
    with torch.no_grad():
        features = sb.clip.encode_image(model, IMAGES[0])
    assert_row_relative(got.features(inputs_of()[0]), features, "block_features")
    assert got.n_features_in_ == towers.D and "adapter" not in got._folded


def path_of(model: nn.Module, parameter: Tensor) -> str:
    return next(n for n, v in model.named_parameters() if v is parameter)


def test_the_model_stays_as_it_is():
    before = {n: v.clone() for n, v in model_of().state_dict().items()}
    one, two = fit(), fit(seed=1)
    assert not torch.equal(one._folded["block_fc_weight"], two._folded["block_fc_weight"])
    for name, value in model_of().state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.float32, marks=pytest.mark.slow)])
def test_cached_inputs_of_fewer_bits_train_in_float32(dtype: torch.dtype):
    x = inputs_of().to(dtype)
    made = fit(X=x)
    assert {v.dtype for n, v in made._folded.items() if n.startswith("block_")} == {torch.float32}
    want = fit(X=x.double())
    assert_row_relative(made.features(x[0]), want.features(x[0].double()), "block_half")
    assert torch.equal(made.predict(x[0]), want.predict(x[0].double()))


def test_predictions_of_inputs_are_those_of_their_features():
    made = fit()
    rows = made.features(inputs_of()[1])
    assert_same_bits(made.logits(inputs_of()[1]), made.logits(rows))
    assert made.predict(inputs_of()[1]).tolist() == made.predict(rows).tolist()
    assert isinstance(made.features(inputs_of()[1].numpy()), np.ndarray)
    assert made.score(inputs_of()[1], [i % 5 for i in range(COUNT)]) > 0.2
    one_view = fit(X=inputs_of()[0])
    assert_same_bits(one_view.losses_, fit(X=inputs_of()[:1]).losses_)


# -- files -----------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, run_epoch, want = tmp_path / "run.safetensors", Trainer.run_epoch, fit()
    with monkeypatch.context() as patch:

        def dies(self):
            if self.epoch == 2:
                raise KeyboardInterrupt
            run_epoch(self)

        patch.setattr(Trainer, "run_epoch", dies)
        with pytest.raises(KeyboardInterrupt):
            fit(path, checkpoint_every=1)
    other = towers.VISION_MODELS["open_clip"]().double()
    with torch.no_grad():
        other.visual.transformer.resblocks[-1].ln_1.bias[0] += 1
    with pytest.raises(ValueError, match=r"got .* of another run, with other model; choose another name"):
        fit(path, model=other)
    made = fit(path)
    assert_same_bits(made.losses_, want.losses_)
    for name, value in want._folded.items():
        if value.any():
            assert_same_bits(made._folded[name], value, name)


def test_saved_estimator_is_the_same(tmp_path: Path):
    made, path = fit(X=inputs_of().float()), tmp_path / "gcd.safetensors"
    made.save(path)
    found = sb.SpectralGCD.load(path)
    x = inputs_of()[0].float()
    assert_same_bits(found.features(x), made.features(x))
    assert_same_bits(found.logits(x), made.logits(x))
    assert found.model is None and found._facts == made._facts and found.get_params()["epochs"] == 3
    found.save(path)
    assert_same_bits(sb.SpectralGCD.load(path).logits(x), made.logits(x))


# -- the cache -------------------------------------------------------------------------------------------


def test_batches_are_gone_through_once_a_view():
    passes = []

    class Loader:
        def __iter__(self):
            passes.append(len(passes))
            for start in range(0, COUNT, 5):
                yield [IMAGES[len(passes) - 1, start : start + 5], torch.zeros(5)]

    assert_figures(cache_block_inputs(model_of(), Loader(), dtype=F64), inputs_of(), "block_features")
    assert passes == [0, 1]
    half = cache_block_inputs(model_of(), IMAGES)
    assert half.dtype is torch.float16 and torch.equal(half, inputs_of().half())


def test_values_beyond_float16_are_refused():
    model = towers.VISION_MODELS["open_clip"]()
    with torch.no_grad():
        model.visual.transformer.resblocks[0].mlp.c_proj.bias[0] = 1e5
    with pytest.raises(ValueError, match=r"inputs must be finite, got NaN .*; choose dtype=torch.float32"):
        cache_block_inputs(model, IMAGES)
    assert torch.isfinite(cache_block_inputs(model, IMAGES, dtype=torch.float32)).all()


@pytest.mark.parametrize("mapped", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_file_holds_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool):
    from semobridge_ext import _files

    monkeypatch.setattr(_files, "MAPPED_FROM", 0 if mapped else 1 << 26)
    path = tmp_path / "inputs.safetensors"
    found = cache_block_inputs(model_of(), IMAGES, out=path)
    assert torch.equal(found, inputs_of().half()) and torch.equal(load_block_inputs(path), found)
    assert_same_bits(fit(X=found).losses_, fit(X=inputs_of().half()).losses_)
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"inputs\.safetensors"):
        load_block_inputs(path)


# -- bad input -------------------------------------------------------------------------------------------


def spoilt() -> Tensor:
    found = inputs_of().clone()
    found[0, 3, 2, 1] = float("nan")
    return found


BAD: dict[str, tuple[Callable[[], dict[str, Any]], type, str]] = {
    "features": (lambda: {"X": torch.zeros(COUNT, 24)}, ValueError, r"X must be \[N, 17, 32\] or \[V, N, 17"),
    "tokens": (lambda: {"X": inputs_of()[:, :, 1:]}, ValueError, r"X must be .* got .*; take it from cache_"),
    "NaN": (lambda: {"X": spoilt()}, ValueError, r"X must be finite, got NaN or infinity in 1 of 32 rows"),
    "integers": (lambda: {"X": inputs_of().long()}, TypeError, r"X must be float32, float64, bfloat16 or fl"),
    "no model": (lambda: {"model": "ViT-B-32"}, TypeError, r"SpectralGCD.fit: model must be a CLIP model"),
    "concepts": (lambda: {"concept_features": CONCEPTS[:, 1:]}, ValueError, r"be \[K, 24\] with K ≥ 2"),
    "pooling": (
        lambda: {"model": towers.VISION_MODELS["SigLIP timm"]()}, NotImplementedError, "with a pooling block",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    changed, kind, told = BAD[case]
    with pytest.raises(kind, match=told):
        fit(**changed())


def test_queries_are_checked():
    made = fit()
    with pytest.raises(ValueError, match=r"SpectralGCD.logits: X must be \[N, 17, 32\]"):
        made.logits(inputs_of()[0, :, 1:])
    with pytest.raises(ValueError, match=r"SpectralGCD.features: X must be of one view, .*; pass X\[0\]"):
        made.features(inputs_of())
    with pytest.raises(ValueError, match=r"SpectralGCD.predict: X must be finite"):
        made.predict(spoilt()[0])
    with pytest.raises(ValueError, match="must be fitted first"):
        sb.SpectralGCD().features(inputs_of()[0])
    plain = sb.SpectralGCD(**SETTINGS)
    plain.fit(inputs_of()[:, :, 0], LABELS)
    with pytest.raises(ValueError, match=r"the estimator must have a trained block, got one without; pass"):
        plain.logits(inputs_of()[0])


BAD_IMAGES: dict[str, tuple[Any, dict[str, Any], type, str]] = {
    "path": ("photos", {}, TypeError, r"cache_block_inputs: images must be a tensor or give batches"),
    "grey": (IMAGES[:, :, :1], {}, ValueError, r"images must be \[N, 3, H, W\] or \[V, N, 3, H, W\]"),
    "size": (pictures(2)[..., :24], {}, ValueError, r"images must give 17 tokens, got 13 tokens of"),
    "none": (IMAGES[:, :0], {}, ValueError, r"images must hold images, got none"),
    "batches of names": ([["a", "b"]], {}, TypeError, r"give batches \[B, 3, H, W\], got str 'a'"),
    "views": ([IMAGES[0]], {"views": 0}, ValueError, r"views must be a whole number ≥ 1, got int 0"),
    "dtype": (IMAGES, {"dtype": torch.int8}, TypeError, r"dtype must be float16, float32 or float64"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_named(case: str):
    images, options, kind, told = BAD_IMAGES[case]
    with pytest.raises(kind, match=told):
        cache_block_inputs(model_of(), images, **options)


def test_a_loader_that_gives_other_images_is_refused():
    sizes = iter([4, 5])

    class Loader:
        def __iter__(self):
            yield IMAGES[0, : next(sizes)]

    with pytest.raises(ValueError, match="give as many images at every pass, got 4, then 5; leave shuffle"):
        cache_block_inputs(model_of(), Loader())
