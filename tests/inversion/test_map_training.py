"""The training of a map through the tower, against autograd through the model's own forward."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext._engines.tower_descent.choice import make_engine
from semobridge_ext.clip.towers import text_tower
from semobridge_ext.inversion import map_training
from semobridge_ext.inversion.ridge import Solution
from tests.support import towers
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.towers import F32, F64, TEXT, open_clip_model

ROWS, HIDDEN, STEPS = 60, 7, 20
OPTIONS: dict[str, Any] = {
    "pilots": 30, "steps": 6, "refine": (3,), "hidden": HIDDEN, "train_steps": STEPS, "batch_size": 16,
}  # fmt: skip


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(f: Tensor) -> Tensor:
    return normalize(f.double(), dim=1)


def fitted(model: nn.Module, f: Tensor, **changed: Any) -> sb.InversionMap:
    return sb.InversionMap.fit(model, f, **{"generator": seeded(), **OPTIONS, **changed})


def engine_of(model: nn.Module, num_tokens: int = 1) -> Any:
    tower, rows = text_tower(model, "a photo of {}", num_tokens=num_tokens)
    return make_engine("oti", model, tower, rows, None)


def own_features(model: nn.Module, tokens: Tensor) -> Tensor:  # [B, R, T] -> [B, D]
    """The model's own forward with the vectors in place of the words' embeddings; autograd reaches them."""
    import open_clip

    words = " ".join(["x"] * tokens.shape[1])
    text = open_clip.tokenize([f"a photo of {words}"], context_length=model.context_length)
    text = text.expand(len(tokens), -1)
    first = 4  # start, a, photo, of

    def replaced(_module: nn.Module, _given: Any, embedded: Tensor) -> Tensor:
        return torch.cat([embedded[:, :first], tokens, embedded[:, first + tokens.shape[1] :]], 1)

    hook = model.token_embedding.register_forward_hook(replaced)
    try:
        return model.encode_text(text)
    finally:
        hook.remove()


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_the_gradient_is_autograds(num_tokens: int) -> None:
    model, f = open_clip_model().double(), rows_of(towers.targets(9, towers.D))
    tokens = 0.1 * torch.randn(9, num_tokens, TEXT, dtype=F64, generator=seeded())
    ours, losses = map_training.gradient(engine_of(model, num_tokens), tokens.clone(), f)
    leaf = tokens.clone().requires_grad_()
    loss = 1 - torch.cosine_similarity(own_features(model, leaf), f, dim=1)
    (want,) = torch.autograd.grad(loss.mean(), leaf)
    assert_row_relative(ours.flatten(1), want.flatten(1), "tower")
    assert_row_relative(losses[None], loss.detach()[None], "tower")


def test_steps_are_those_of_the_plain_program() -> None:
    """torch.optim.Adam on the same parameters, autograd through the model's own forward."""
    model, f = open_clip_model().double(), rows_of(towers.targets(ROWS, towers.D))
    batches = map_training.drawn_batches(ROWS - 12, 5, seeded())
    matrix, offset = (
        0.3 * torch.randn(*s, dtype=F64, generator=seeded(2)) for s in ((towers.D, TEXT), (TEXT,))
    )
    inner = torch.randn(towers.D, HIDDEN, dtype=F64, generator=seeded(3))
    training = map_training.Training(
        engine_of(model), f[12:], f[:12], batches, inner, Solution(matrix, offset), 0.02
    )
    training.run(None, progress=False)

    leaves = [t.clone().requires_grad_() for t in (matrix, offset, inner, torch.zeros(HIDDEN, TEXT).double())]
    optimizer = torch.optim.Adam(
        [{"params": leaves[:2], "lr": 0.01}, {"params": leaves[2:], "lr": 0.003}], eps=1e-8
    )
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / 5)
    for batch in batches:
        x = f[12:][batch]
        tokens = x @ leaves[0] + leaves[1] + (x @ leaves[2]).relu() @ leaves[3]
        loss = 1 - torch.cosine_similarity(own_features(model, tokens.reshape(-1, 1, TEXT)), x, dim=1)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        falling.step()
    for name, leaf in zip(("matrix", "offset", "inner", "outer"), leaves, strict=True):
        assert_row_relative(training.now[name].reshape(len(leaf), -1), leaf.detach().reshape(len(leaf), -1),
                            "descent", dtype=F64)  # fmt: skip


def test_the_best_state_is_kept_and_judged_on_rows_held_out() -> None:
    model, f = open_clip_model().double(), towers.targets(ROWS, towers.D)
    linear, phi = fitted(model, f, train_steps=0), fitted(model, f)
    assert phi.inner is not None and phi.inner.shape == (towers.D, HIDDEN) and linear.inner is None
    held = torch.arange(ROWS) % 5 == 4
    found = sb.reference.oti(model, f[held], init=phi(f[held]), steps=0).features
    loss = 1 - torch.cosine_similarity(found, f[held], dim=1).mean()
    assert_figures(phi.held_out_loss, float(loss), "tower")


def test_a_training_that_goes_wrong_leaves_the_regression() -> None:
    model, f = open_clip_model(), towers.targets(ROWS, towers.D, F32)
    linear, f = fitted(model, f, train_steps=0), rows_of(f).float()
    start, inner = Solution(linear.matrix, linear.offset.flatten()), torch.randn(towers.D, HIDDEN)
    batches = map_training.drawn_batches(ROWS - 12, STEPS, seeded())
    wild = map_training.Training(engine_of(model), f[12:], f[:12], batches, inner, start, lr=1e4)
    before = wild.least
    wild.run(None, progress=False)
    assert wild.least == before and float(wild.now["outer"].abs().max()) > 1
    assert float(wild.best["outer"].abs().max()) == 0.0
    assert_same_bits(wild.best["matrix"], linear.matrix.float())


def test_training_gains_on_rows_that_took_no_part() -> None:
    model, f = open_clip_model(), towers.targets(200, towers.D, F32)
    options = {"pilots": 60, "steps": 50, "refine": (20,), "hidden": 64}
    losses = [
        float(
            sb.oti(model, f[150:], init=fitted(model, f[:150], train_steps=n, **options), steps=1).losses[0]
        )
        for n in (0, 150)
    ]
    assert losses[1] < 0.7 * losses[0]


def test_few_rows_leave_the_map_linear() -> None:
    model, f = open_clip_model(), towers.targets(9, towers.D, F32)
    assert fitted(model, f).inner is None


def test_a_trained_map_keeps_rows_apart_and_its_bits(tmp_path: Path) -> None:
    model, f = open_clip_model(), towers.targets(ROWS, towers.D, F32)
    phi = fitted(model, f)
    assert_same_bits(phi(f)[5:8], phi(f[5:8]))
    assert_same_bits(phi(torch.zeros(1, towers.D))[0], phi.offset.float())
    x = rows_of(f)
    want = x @ phi.matrix + phi.offset.flatten() + (x @ phi.inner).relu() @ phi.outer
    assert_row_relative(phi(f).flatten(1), want, "linear_map", dtype=F32)
    phi.save(tmp_path / "phi.safetensors")
    found = sb.InversionMap.load(tmp_path / "phi.safetensors")
    assert_same_bits(found(f), phi(f))
    assert repr(found) == repr(phi) and "7 hidden" in repr(phi)
    assert_same_bits(
        sb.oti(model, f, init=found, steps=2).tokens, sb.oti(model, f, init=phi(f), steps=2).tokens
    )
    phi.outer.mul_(2)
    assert not torch.equal(found(f), phi(f)), "a layer that changes is noticed"


@pytest.mark.parametrize("after", [0, 1, 6])
def test_a_killed_training_goes_on(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, f = open_clip_model(), towers.targets(ROWS, towers.D, F32)
    out, whole = tmp_path / "phi.safetensors", tmp_path / "whole.safetensors"
    write, take, count, steps = map_training.Checkpoint.write, map_training.Training._take_step, [0], []

    def dies(self: Any, training: Any) -> None:
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        write(self, training)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(map_training.Checkpoint, "write", dies)
        fitted(model, f, out=out)
    assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(map_training.Training, "_take_step", lambda self: (steps.append(1), take(self))[1])
        fitted(model, f, out=out)
    assert len(steps) == STEPS - after * STEPS // map_training.LOOKS
    fitted(model, f, out=whole)
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, whole.name]


CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "hidden": ("hidden 7 .now 8.", {"hidden": 8}),
    "steps": ("train_steps 20 .now 21.", {"train_steps": 21}),
    "no training": ("train_steps 20", {"train_steps": 0}),
    "other rows": ("features_digest", {"features": towers.targets(ROWS + 1, towers.D, F32)}),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_training_is_refused(case: str, tmp_path: Path) -> None:
    told, changed = CHANGED[case]
    model, f, out = open_clip_model(), towers.targets(ROWS, towers.D, F32), tmp_path / "phi.safetensors"
    fitted(model, f, out=out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=rf"InversionMap\.fit: out must be new or .* with other .*{told}"):
        fitted(model, changed.pop("features", f), out=out, **changed)
    assert out.read_bytes() == before


def test_half_a_layer_is_refused(tmp_path: Path) -> None:
    from semobridge_ext import _files

    model, f, path = open_clip_model(), towers.targets(ROWS, towers.D, F32), tmp_path / "phi.safetensors"
    fitted(model, f).save(path)
    tensors, meta = _files.load_tensors(
        "test", path, "semobridge-ext inversion map 1", ("matrix", "offset", "inner"), ("facts",)
    )
    _files.save_tensors(path, tensors, {"format": meta["format"], "facts": meta["facts"]})
    with pytest.raises(ValueError, match=re.escape("must hold inner and outer, or neither")):
        sb.InversionMap.load(path)
