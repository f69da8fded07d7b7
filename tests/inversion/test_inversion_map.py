"""A learned start against an independent ridge solution, and a start from it against a tensor's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext import clip
from tests.support import towers
from tests.support.assertions import assert_close, assert_figures, assert_row_relative, assert_same_bits
from tests.support.towers import F32, F64, TEXT, TEXT_MODELS, open_clip_model

ROWS = 40
RIDGES = [10 ** (k / 2) for k in range(-8, 5)]  # as the docstring says


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inverted(
    model: nn.Module, f: Tensor, num_tokens: int = 1, steps: int = 30, **options: Any
) -> sb.Inversion:
    return sb.oti(model, f, num_tokens=num_tokens, steps=steps, generator=seeded(), **options)


def unit(f: Tensor) -> np.ndarray:
    rows = f.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def least_squares(
    f: Tensor, tokens: Tensor, ridge: float
) -> tuple[np.ndarray, np.ndarray]:  # [D, R·T], [R·T]
    """The ridge solution as a least-squares problem with D rows more; no normal equations."""
    x, y = unit(f), tokens.double().flatten(1).numpy()
    mean, offset = x.mean(0), y.mean(0)
    centred = x - mean
    width = x.shape[1]
    loaded = np.sqrt(ridge * (centred**2).sum() / width) * np.eye(width)
    ends = np.concatenate([y - offset, np.zeros((width, y.shape[1]))])
    matrix = np.linalg.lstsq(np.concatenate([centred, loaded]), ends, rcond=None)[0]
    return matrix, offset - mean @ matrix


@pytest.mark.parametrize(("num_tokens", "template"), [(1, "a photo of {}"), (3, "{} is big")])
@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_map_is_the_ridge_solution(num_tokens: int, template: str, ridge: float) -> None:
    model, f = open_clip_model().double(), towers.targets(ROWS, towers.D)
    inv = inverted(model, f, num_tokens, template=template)
    phi = sb.InversionMap.from_inversion(model, 3 * f, inv, ridge=ridge, template=template)
    matrix, offset = least_squares(f, inv.tokens, ridge)
    assert_close(phi.matrix, torch.from_numpy(matrix), "matrix")
    assert_close(phi.offset.flatten(), torch.from_numpy(offset), "matrix")
    assert phi.ridge == ridge and phi.held_out_loss is None and phi.num_tokens == num_tokens
    others = towers.targets(7, towers.D).flip(0)
    want = torch.from_numpy(unit(others) @ matrix + offset).reshape(7, num_tokens, TEXT)
    assert_row_relative(phi(2 * others).flatten(1), want.flatten(1), "linear_map")


def test_the_ridge_has_the_least_loss_on_pilots_held_out() -> None:
    """Each candidate fitted by least squares to four of five rows, its loss by the model's own forward."""
    model, f = open_clip_model().double(), towers.targets(ROWS, towers.D)
    inv = inverted(model, f)
    held = np.arange(ROWS) % 5 == 4
    losses = []
    for ridge in RIDGES:
        matrix, offset = least_squares(f[~held], inv.tokens[~held], ridge)
        tokens = torch.from_numpy(unit(f[held]) @ matrix + offset).reshape(-1, 1, TEXT)
        found = sb.reference.oti(model, f[held], init=tokens, steps=0).features
        losses.append(float((1 - torch.cosine_similarity(found, f[held], dim=1)).mean()))
    phi = sb.InversionMap.from_inversion(model, f, inv)
    best = int(np.argmin(losses))
    assert 0 < best < len(RIDGES) - 1, "the problem does not tell the candidates apart"
    assert_figures(phi.ridge, RIDGES[best], "figure")
    assert_figures(phi.held_out_loss, losses[best], "tower")
    assert_close(phi.matrix, torch.from_numpy(least_squares(f, inv.tokens, RIDGES[best])[0]), "matrix")


def test_fit_is_its_rounds() -> None:
    """Draw, one start row, regression, and on from its predictions: the same from public calls."""
    model, f = open_clip_model(), towers.targets(70, towers.D, F32)
    phi = sb.InversionMap.fit(
        model, f, pilots=60, steps=9, refine=(4, 3), ridge=0.1, generator=seeded(5), train_steps=0
    )
    generator = seeded(5)
    pilots = f[torch.randperm(70, generator=generator)[:60].sort().values]
    first = torch.randn(1, TEXT, generator=generator) * 0.02
    inv = sb.oti(model, pilots, init=first, steps=9)  # below 100 pilots all take part from the start
    own = sb.InversionMap.from_inversion(model, pilots, inv, ridge=0.1)
    for steps in (4, 3):
        inv = sb.oti(model, pilots, init=own, steps=steps)
        own = sb.InversionMap.from_inversion(model, pilots, inv, ridge=0.1)
    assert_row_relative(phi(f).flatten(1), own(f).flatten(1).double(), "descent", dtype=F32)


def test_many_pilots_begin_with_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    from semobridge_ext.inversion import invert

    counts, run_chunk = [], invert.run_chunk
    monkeypatch.setattr(invert, "run_chunk", lambda *a: (counts.append(len(a[1])), run_chunk(*a))[1])
    model, f = open_clip_model(), towers.targets(300, towers.D, F32)
    sb.InversionMap.fit(model, f, pilots=255, steps=1, refine=(1,), train_steps=0)
    assert counts == [51, 255]
    counts.clear()
    sb.InversionMap.fit(model, f, pilots=255, steps=1, refine=(), train_steps=0)
    assert counts == [255]


def test_a_learned_start_saves_most_of_the_steps() -> None:
    """Cold oti is the measure: the loss of all its steps in a tenth of them, on rows that took no part."""
    model, f = open_clip_model(), towers.targets(300, towers.D, F32)
    phi = sb.InversionMap.fit(model, f[:200], generator=seeded(2), train_steps=300)
    cold = sb.oti(model, f[200:], generator=seeded(3))
    warm = sb.oti(model, f[200:], init=phi, steps=15)
    assert float(warm.losses[0]) < 0.5 * float(cold.losses[0])
    assert float(warm.losses[-1]) <= float(cold.losses[-1])


@pytest.mark.parametrize("kind", ["CustomTextCLIP no projection", "SigLIP text", "OpenAI", "Hugging Face"])
def test_every_family(kind: str) -> None:
    model = TEXT_MODELS[kind]()
    f = towers.targets(12, clip.text_tower(model)[0].features, F32)
    phi = sb.InversionMap.fit(model, f, steps=3, refine=(2,), generator=seeded(), train_steps=3)
    assert_same_bits(sb.oti(model, f, init=phi, steps=0).tokens, phi(f))


# -- as a start --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return open_clip_model()


@pytest.fixture(scope="module")
def features() -> Tensor:
    return towers.targets(ROWS, towers.D, F32)


@pytest.fixture(scope="module")
def phi(model: nn.Module, features: Tensor) -> sb.InversionMap:
    return sb.InversionMap.from_inversion(model, features, inverted(model, features))


def test_a_start_is_its_tokens(model: nn.Module, features: Tensor, phi: sb.InversionMap) -> None:
    options = {"steps": 8, "record_steps": (3,)}
    ours, plain = (
        sb.oti(model, features, init=phi, **options),
        sb.oti(model, features, init=phi(features), **options),
    )
    assert_same_bits(ours.tokens, plain.tokens)
    assert_same_bits(ours.recorded[3], plain.recorded[3])


def test_rows_are_independent(model: nn.Module, features: Tensor, phi: sb.InversionMap) -> None:
    assert_same_bits(phi(features)[5:8], phi(features[5:8]))
    one = sb.oti(model, features, init=phi, steps=5, batch_size=7)
    assert_same_bits(one.tokens, sb.oti(model, features, init=phi, steps=5).tokens)


def test_lengths_and_dtypes_do_not_matter(features: Tensor, phi: sb.InversionMap) -> None:
    assert phi(features).dtype is F32 and phi(features.double()).dtype is F32
    assert_same_bits(phi(features.double()), phi(features))
    assert_same_bits(phi(4 * features), phi(features))
    assert phi(features[:0]).shape == (0, 1, TEXT)
    zero = phi(torch.zeros(1, towers.D))
    assert_same_bits(zero[0], phi.offset.float())


def test_copies_and_replaced_matrices(features: Tensor, phi: sb.InversionMap) -> None:
    own = copy.deepcopy(phi)
    assert_same_bits(own(features), phi(features))
    own.matrix.mul_(2)
    own.offset = 2 * own.offset
    assert_same_bits(own(features), 2 * phi(features))
    narrow = sb.InversionMap(phi.matrix.float(), phi.offset.float(), phi.identity, ridge=1.0)
    assert narrow.matrix.dtype is F64 and narrow(features).dtype is F32


def test_zero_rows_are_no_pilots(model: nn.Module, features: Tensor) -> None:
    mixed = torch.cat([torch.zeros(3, towers.D), features, torch.zeros(2, towers.D)])
    options = {"steps": 4, "refine": (2,), "ridge": 0.1, "train_steps": 5}
    with_zeros = sb.InversionMap.fit(model, mixed, generator=seeded(), **options)
    without = sb.InversionMap.fit(model, features, generator=seeded(), **options)
    assert_same_bits(with_zeros.matrix, without.matrix)
    inv = inverted(model, mixed)
    own = sb.InversionMap.from_inversion(model, mixed, inv, ridge=0.1)
    part = sb.Inversion(inv.tokens[3:-2], inv.features[3:-2], inv.losses, {}, inv.steps_done[3:-2])
    assert_same_bits(own.matrix, sb.InversionMap.from_inversion(model, features, part, ridge=0.1).matrix)


def test_equal_rows_leave_the_constant(model: nn.Module, features: Tensor) -> None:
    same = features[:1].expand(6, -1)
    inv = inverted(model, same)
    found = sb.InversionMap.from_inversion(model, same, inv)
    assert_close(found(features), inv.tokens.mean(0).double().expand(ROWS, -1, -1), "op")


def nudged() -> nn.Module:
    model = open_clip_model()
    with torch.no_grad():
        model.transformer.resblocks[0].mlp.c_fc.weight[0, 0] += 1e-3
    return model


OTHER: dict[str, tuple[str, Callable[[], nn.Module], dict[str, Any]]] = {
    "template": (r'rows_digest, template "a photo of \{\}" \(now "a drawing of \{\}"\)', open_clip_model,
                 {"template": "a drawing of {}"}),
    "number of tokens": (r"rows_digest, vectors 1 \(now 2\)", open_clip_model, {"num_tokens": 2}),
    "one weight": ("tower_digest;", nudged, {}),
    "heads": ("tower_digest;", lambda: open_clip_model(text={"heads": 6}), {}),
    "activation": ("tower_digest;", lambda: open_clip_model(quick_gelu=True), {}),
    "a double model": ("compute.*tower_digest;", lambda: open_clip_model().double(), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_another_tower_or_template_is_refused(case: str, features: Tensor, phi: sb.InversionMap) -> None:
    told, other, options = OTHER[case]
    with pytest.raises(ValueError, match=rf"oti: init must be a map of this model .* with other .*{told}"):
        sb.oti(other(), features, init=phi, steps=1, **options)


def test_a_weight_that_changes_is_noticed(features: Tensor) -> None:
    """Digests are kept between calls, but not past a change."""
    model = open_clip_model()
    phi = sb.InversionMap.from_inversion(model, features, inverted(model, features))
    sb.oti(model, features, init=phi, steps=1)
    weight = model.transformer.resblocks[0].mlp.c_fc.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="tower_digest"):
        sb.oti(model, features, init=phi, steps=1)
    with torch.no_grad():
        weight.copy_(kept)
    sb.oti(model, features, init=phi, steps=1)


def test_ovi_refuses_the_map_of_a_text_tower(
    model: nn.Module, features: Tensor, phi: sb.InversionMap
) -> None:
    with pytest.raises(ValueError, match=r'ovi: init must be .* function "oti" \(now "ovi"\)'):
        sb.ovi(model, features, init=phi, steps=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_targets_are_named(value: float, model: nn.Module, phi: sb.InversionMap) -> None:
    f = towers.targets(5, towers.D, F32).clone()
    f[1, 3] = f[4, 0] = value
    calls: dict[str, Callable[[], Any]] = {
        "oti: img_feats": lambda: sb.oti(model, f, init=phi, steps=1),
        "InversionMap: features": lambda: phi(f),
        "InversionMap.fit: features": lambda: sb.InversionMap.fit(model, f, pilots=2, steps=1),
    }
    for named, call in calls.items():
        with pytest.raises(ValueError, match=rf"{named} must be finite, got .* in 2 of 5 rows \(1, 4\)"):
            call()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one pilot": ({"pilots": 1}, ValueError, "pilots must be an int of at least 2"),
    "pilots kind": ({"pilots": 2.0}, TypeError, "pilots must be an int"),
    "no steps in a round": ({"refine": (3, 0)}, ValueError, "refine must be an int of at least 1"),
    "hidden": ({"hidden": 0}, ValueError, "hidden must be an int of at least 1"),
    "train_steps": ({"train_steps": -1}, ValueError, "train_steps must be an int of at least 0"),
    "ridge": ({"ridge": 0.0}, ValueError, 'ridge must be "auto" or a finite number > 0'),
    "ridge word": ({"ridge": "none"}, ValueError, "ridge must be"),
    "ridge kind": ({"ridge": None}, TypeError, "ridge must be"),
    "one row": ({"features": torch.ones(1, towers.D)}, ValueError, "two rows at least .* got 1"),
    "zero rows": ({"features": torch.zeros(9, towers.D)}, ValueError, "two rows at least .* got 0"),
    "width": ({"features": torch.ones(9, 7)}, ValueError, "features must have width 24"),
    "template": ({"template": "a photo"}, ValueError, "must contain {} once"),
    "lr": ({"lr": float("nan")}, ValueError, "InversionMap.fit: lr must be a finite number"),
    "model": ({"model": "ViT-B-32"}, TypeError, "model must be a CLIP model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str, model: nn.Module, features: Tensor) -> None:
    changed, kind, words = BAD[case]
    given = {"model": model, "features": features, "steps": 1, **changed}
    with pytest.raises(kind, match=words) as caught:
        sb.InversionMap.fit(given.pop("model"), given.pop("features"), **given)
    assert str(caught.value).startswith("InversionMap.fit: ")


PARTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no tensor": ({"matrix": [1.0]}, TypeError, "matrix must be a torch.Tensor"),
    "one row": ({"offset": torch.ones(TEXT)}, ValueError, "offset must be 2-D"),
    "infinite": ({"offset": torch.full((1, TEXT), float("inf"))}, ValueError, "offset must be finite"),
    "narrow": ({"matrix": torch.ones(3, 5)}, ValueError, r"matrix must be \[D, 48\], as wide as offset"),
    "two vectors": ({"offset": torch.ones(2, TEXT // 2)}, ValueError, r"offset must be \[1, T\]"),
    "low layer": (
        {"layer": (torch.ones(3, 4), torch.ones(4, TEXT))},
        ValueError,
        r"inner must be \[24, H\], as high as matrix",
    ),
    "narrow layer": (
        {"layer": (torch.ones(towers.D, 4), torch.ones(5, TEXT))},
        ValueError,
        r"outer must be \[4, 48\], from inner to matrix",
    ),
    "no identity": ({"identity": {}}, ValueError, "identity must hold function, template"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_bad_parts(case: str, phi: sb.InversionMap) -> None:
    changed, kind, words = PARTS[case]
    given = {"matrix": phi.matrix, "offset": phi.offset, "identity": phi.identity, **changed}
    with pytest.raises(kind, match=f"InversionMap: {words}"):
        sb.InversionMap(**given, ridge=1.0)


def test_an_inversion_of_something_else_is_refused(model: nn.Module, features: Tensor) -> None:
    inv, made = inverted(model, features), sb.InversionMap.from_inversion
    with pytest.raises(ValueError, match=r"inversion must have tokens \[39, 1, 48\], a row for each feature"):
        made(model, features[:39], inv)
    with pytest.raises(ValueError, match=r"lead to other features than its own \(mean cosine"):
        made(model, features, inv, template="{} is big")
    with pytest.raises(TypeError, match="inversion must be an Inversion"):
        made(model, features, inv.tokens)


# -- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_saved_map_is_the_same_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model, f = open_clip_model().to(dtype), towers.targets(ROWS, towers.D, dtype)
    phi = sb.InversionMap.from_inversion(model, f, inverted(model, f, 2))
    phi.save(tmp_path / "phi.safetensors")
    found = sb.InversionMap.load(tmp_path / "phi.safetensors")
    assert_same_bits(found.matrix, phi.matrix)
    assert_same_bits(found.offset, phi.offset)
    assert_same_bits(found(f), phi(f))
    assert found(f).dtype is dtype and repr(found) == repr(phi)
    assert (found.ridge, found.held_out_loss, found.identity) == (phi.ridge, phi.held_out_loss, phi.identity)
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "phi.safetensors").read_bytes()
    assert_same_bits(
        sb.oti(model, f, num_tokens=2, init=found, steps=2).tokens,
        sb.oti(model, f, num_tokens=2, init=phi, steps=2).tokens,
    )


def test_foreign_files_are_refused(tmp_path: Path, phi: sb.InversionMap) -> None:
    path = tmp_path / "map.safetensors"
    with pytest.raises(FileNotFoundError, match=r"InversionMap\.load: path must be an existing file"):
        sb.InversionMap.load(path)
    sb.LinearMap(torch.eye(3)).save(path)
    with pytest.raises(ValueError, match="must be a 'semobridge-ext inversion map 1' file"):
        sb.InversionMap.load(path)
    phi.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        sb.InversionMap.load(path)
