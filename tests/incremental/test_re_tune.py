"""RETune: its training against a plain loop, what it keeps and forgets, labels, files, bad input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import semobridge_ext as sb
from semobridge_ext.incremental import encode_findings
from tests.support import incremental
from tests.support.assertions import assert_figures, assert_row_relative, assert_same_bits
from tests.support.incremental import NAMES, SMALL, findings

DATA = findings()
FIRST, SECOND = [0, 1, 2], [3, 4]


def fit(columns: list[int] = FIRST, **changed: Any) -> sb.RETune:
    return incremental.fit(DATA, columns, **changed)


def further(model: sb.RETune, columns: list[int] = SECOND, x: Tensor = DATA.x, **given: Any) -> sb.RETune:
    names = [NAMES[c] for c in columns]
    return model.partial_fit(x, DATA.y[:, columns], DATA.prompts[columns], findings=names, **given)


# -- the training ----------------------------------------------------------------------------------------


def plain(p: dict[str, Tensor], x: Tensor, prompts: Tensor, r: float, s: float) -> Tensor:
    """s·cos with both prompts of every finding, [N, L, 2], one row and finding after the other."""

    def moved(tower: str, row: Tensor) -> Tensor:
        row = row / row.norm()
        if f"{tower}_linear" in p:
            step = p[f"{tower}_linear"].T @ row
        else:
            step = p[f"{tower}_up"].T @ (p[f"{tower}_down"].T @ row).clamp(min=0)
        row = row + r * step
        return row / row.norm()

    texts = [[moved("text", t) for t in pair] for pair in prompts]
    faces = [moved("image", row) for row in x]
    return torch.stack([torch.stack([torch.stack([s * f @ t for t in two]) for two in texts]) for f in faces])


def plain_task(
    p: dict[str, Tensor], x: Tensor, y: Tensor, prompts: Tensor, r: float, s: float, decay: float
) -> list[float]:
    """Four full-batch epochs of torch.optim's AdamW on the cross-entropy over the two prompts."""
    leaves = {name: value.clone().requires_grad_() for name, value in p.items()}
    optimizer = torch.optim.AdamW(leaves.values(), lr=1.0, weight_decay=decay)
    losses = []
    for epoch in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + np.cos(np.pi * epoch / 4)) / 2
        cosines = plain(leaves, x, prompts, r, s)
        known = y >= 0
        loss = cross_entropy(cosines[known], 1 - y[known])  # class 0 is the positive prompt
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    p.update({name: value.detach() for name, value in leaves.items()})
    return losses


@pytest.mark.parametrize(
    "changed",
    [{}, {"residual": 0.3, "weight_decay": 0.5}, {"adaptor": "bottleneck", "width": 5, "logit_scale": 20.0}],
    ids=["linear", "residual", "bottleneck"],
)
def test_two_tasks_are_those_of_a_plain_loop(changed: dict[str, Any]):
    settings = {**sb.RETune().get_params(), **SMALL, **changed}
    r, s, decay = (settings[name] for name in ("residual", "logit_scale", "weight_decay"))
    y = DATA.y.clone()
    y[torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.2] = -1
    start = sb.RETune(**{**SMALL, **changed}).add_findings(DATA.prompts)._model
    assert start is not None
    p = {name: value.double() for name, value in start.parameters.items()}
    want = plain_task(p, DATA.x, y[:, FIRST], DATA.prompts[FIRST], r, s, decay)
    model = fit(Y=y[:, FIRST], **changed)
    assert_figures(model.losses_, want, "re_tune")
    rows = DATA.x[:25]
    want = plain_task(p, rows, y[:25, SECOND], DATA.prompts[SECOND], r, s, decay)
    model.partial_fit(rows, y[:25, SECOND], DATA.prompts[SECOND], findings=[NAMES[c] for c in SECOND])
    assert_figures(model.losses_, want, "re_tune")
    assert model.tasks_ == 2 and model.findings_ == NAMES
    for name, value in p.items():
        assert float((value - start.parameters[name]).abs().max()) > 1e-3
        assert_figures(model._model.parameters[name], value, "re_tune", context=name)
    cosines = plain(p, DATA.x, DATA.prompts, r, s)
    assert_figures(model.decision_function(DATA.x), cosines[..., 0] - cosines[..., 1], "re_tune")
    proba = model.predict_proba(DATA.x)
    assert_figures(proba, torch.softmax(cosines, dim=2)[..., 0], "re_tune")
    assert torch.equal(model.predict(DATA.x), (proba > 0.5).long())


def test_before_any_training_it_is_the_zero_shot_classifier():
    prompts = normalize(DATA.prompts, dim=2)
    want = 10 * normalize(DATA.x, dim=1) @ (prompts[:, 0] - prompts[:, 1]).T
    for changed in ({}, {"adaptor": "bottleneck"}):
        model = sb.RETune(logit_scale=10.0, **changed).add_findings(DATA.prompts, NAMES)
        assert model.tasks_ == 0
        assert_row_relative(model.decision_function(DATA.x), want, "re_tune")
        assert_row_relative(model.decision_function(DATA.x.float()), want, "re_tune", dtype=torch.float32)
    half = (
        sb.RETune(logit_scale=10.0).add_findings(DATA.prompts[:2]).add_findings(DATA.prompts[2:], NAMES[2:])
    )
    assert half.findings_ == [0, 1, *NAMES[2:]]
    assert_row_relative(half.decision_function(DATA.x), want, "re_tune")


def test_mini_batches_cover_every_labelled_row_once(monkeypatch: pytest.MonkeyPatch):
    from semobridge_ext.incremental.training import Trainer

    seen: list[list[int]] = []
    step = Trainer._step

    def noting(self: Trainer, rows: Tensor, rate: float) -> Tensor:
        seen.append(rows.tolist())
        return step(self, rows, rate)

    monkeypatch.setattr(Trainer, "_step", noting)
    y = DATA.y[:, FIRST].clone()
    y[[4, 7]] = -1
    model = fit(Y=y, batch_size=16)
    first = seen[:]
    epochs = [[*seen[i], *seen[i + 1], *seen[i + 2]] for i in range(0, 12, 3)]
    assert [len(rows) for rows in seen] == [16, 16, 6] * 4
    assert all(sorted(rows) == [r for r in range(40) if r not in (4, 7)] for rows in epochs)
    first = seen[:]
    assert len({str(rows) for rows in epochs}) == 4
    seen.clear()
    model.partial_fit(DATA.x, y)
    assert not {str(rows) for rows in seen} & {str(rows) for rows in first}  # another task, other draws
    seen.clear()
    fit(Y=y, batch_size=16)
    assert seen == first
    seen.clear()
    fit(Y=y, batch_size=16, seed=1)
    assert seen != first
    assert torch.isfinite(model.losses_).all()


@pytest.mark.parametrize("hidden", [float("nan"), -1, "mask"])
def test_unknown_labels_have_no_part(hidden: Any):
    """Whatever a hidden label would say, the adaptors have the same bits."""
    dark = torch.rand(40, 3, generator=torch.Generator().manual_seed(5)) < 0.3
    results = []
    for flip in (False, True):
        y = torch.where(dark & torch.tensor(flip), 1 - DATA.y[:, FIRST], DATA.y[:, FIRST]).double()
        mask = hidden == "mask"
        results.append(fit(Y=y, known=~dark) if mask else fit(Y=torch.where(dark, hidden, y)))
    assert_same_bits(results[0].losses_, results[1].losses_)
    parameters = [model._model.parameters["image_linear"] for model in results]
    assert_same_bits(*parameters)
    assert not torch.equal(parameters[0], fit()._model.parameters["image_linear"])


def test_training_helps_and_a_next_task_begins_where_the_last_ended():
    data, held = findings(300, noise=0.8, dtype=torch.float32), findings(300, noise=0.8, seed=0)
    train, test = slice(0, 200), slice(200, 300)
    zero = sb.RETune(logit_scale=10.0).add_findings(data.prompts, NAMES)
    model = sb.RETune(epochs=40, lr=3e-3, logit_scale=10.0)
    model.partial_fit(data.x[train], data.y[train][:, FIRST], data.prompts[FIRST], findings=NAMES[:3])
    early = model.decision_function(held.x[test])
    model.partial_fit(data.x[train], data.y[train][:, SECOND], data.prompts[SECOND], findings=NAMES[3:])
    assert early.shape == (100, 3)
    assert model.score(data.x[test], data.y[test]) > zero.score(data.x[test], data.y[test]) + 0.05
    alone = sb.RETune(epochs=40, lr=3e-3, logit_scale=10.0)
    alone.fit(data.x[train], data.y[train][:, SECOND], data.prompts[SECOND], findings=NAMES[3:])
    assert float(model.losses_[0]) != float(alone.losses_[0])
    model.fit(data.x[train], data.y[train][:, SECOND], data.prompts[SECOND], findings=NAMES[3:])
    assert_same_bits(model.losses_, alone.losses_)  # fit forgets everything
    assert model.tasks_ == 1 and model.findings_ == NAMES[3:]


# -- nothing of a task is kept -----------------------------------------------------------------------------


def tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor and array that can be reached from an object's attributes."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (Tensor, np.ndarray)):
        yield torch.as_tensor(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value), seen)


@pytest.mark.parametrize("adaptor", ["linear", "bottleneck"])
def test_no_attribute_and_no_file_holds_training_rows(adaptor: str, tmp_path: Path):
    """What is kept has one size for any number of images, and no row of it is an image's."""
    sizes = []
    for count in (40, 400):
        data = findings(count)
        model = incremental.fit(data, FIRST, adaptor=adaptor)
        names = [NAMES[c] for c in SECOND]
        model.partial_fit(data.x, data.y[:, SECOND], data.prompts[SECOND], findings=names)
        found = list(tensors_in(model, set()))
        assert {t.data_ptr() for t in model._model.parameters.values()} <= {t.data_ptr() for t in found}
        storage = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
        unit = normalize(data.x, dim=1)
        for t in found:
            if t.dim() > 1 and t.shape[-1] == data.x.shape[1]:
                rows = normalize(t.double().reshape(-1, t.shape[-1]), dim=1)
                assert float((rows @ unit.T).max()) < 0.999999
        model.save(tmp_path / "model.safetensors")
        sizes.append((sum(storage.values()), (tmp_path / "model.safetensors").stat().st_size))
    assert sizes[0] == sizes[1]


def test_the_inputs_stay():
    before, state = [t.clone() for t in DATA], torch.get_rng_state()
    model = further(fit(adaptor="bottleneck", batch_size=8))
    model.predict(DATA.x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(was, now) for was, now in zip(before, DATA, strict=True))
    arrays = fit(X=DATA.x.numpy(), Y=DATA.y[:, FIRST].numpy(), prompt_features=DATA.prompts[FIRST].numpy())
    assert_same_bits(arrays.losses_, fit().losses_)
    assert isinstance(arrays.predict_proba(DATA.x.numpy()), np.ndarray)
    assert arrays.predict(DATA.x.numpy()).dtype == np.int64


# -- findings ----------------------------------------------------------------------------------------------


def test_known_findings_need_no_prompts_again():
    one, two, three = fit(), fit(), fit()
    one.partial_fit(DATA.x, DATA.y[:, [2, 0]], findings=[NAMES[2], NAMES[0]])
    two.partial_fit(DATA.x, DATA.y[:, [2, 0]], DATA.prompts[[2, 0]], findings=[NAMES[2], NAMES[0]])
    assert one.findings_ == two.findings_ == NAMES[:3]
    assert_same_bits(one.losses_, two.losses_)
    three.partial_fit(DATA.x, DATA.y[:, FIRST])
    assert three.tasks_ == 2
    both = fit().partial_fit(
        DATA.x, DATA.y[:, [4, 1]], DATA.prompts[[4, 1]], findings=[NAMES[4], NAMES[1]]
    )  # fmt: skip
    assert both.findings_ == [*NAMES[:3], NAMES[4]]


def test_score_is_the_mean_average_precision():
    from sklearn.metrics import average_precision_score

    model = further(fit())
    z = model.decision_function(DATA.x).numpy()
    want = average_precision_score(DATA.y.numpy(), z, average="macro")
    assert_figures(model.score(DATA.x, DATA.y), want, "multilabel")
    part = average_precision_score(DATA.y[:, [4, 1]].numpy(), z[:, [4, 1]], average="macro")
    got = model.score(DATA.x, DATA.y[:, [4, 1]], findings=[NAMES[4], NAMES[1]])
    assert_figures(got, part, "multilabel")


def test_scikit_learn_can_clone_it():
    from sklearn.base import clone

    model = fit(adaptor="bottleneck", width=3)
    copy = clone(model)
    assert copy.get_params() == model.get_params() and not hasattr(copy, "findings_")
    assert repr(copy) == "RETune(adaptor='bottleneck', epochs=4, lr=0.01, seed=0)"


def test_prompts_are_encoded_in_pairs():
    model, _, tokenizer = sb.load_picto_clip()
    found = encode_findings(
        model, ["circle", "arrow"], positive="a {}", negative="no {}", tokenizer=tokenizer
    )
    want = sb.encode_text(model, ["a circle", "no circle", "a arrow", "no arrow"], tokenizer=tokenizer)
    assert torch.equal(found, want.reshape(2, 2, -1))
    with pytest.raises(ValueError, match=r"encode_findings: negative must contain \{\}, got 'no'"):
        encode_findings(model, ["circle"], negative="no", tokenizer=tokenizer)
    with pytest.raises(TypeError, match="encode_findings: findings must be several names"):
        encode_findings(model, "circle", tokenizer=tokenizer)


# -- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptor", ["linear", "bottleneck"])
def test_a_saved_model_goes_on_like_the_one_in_memory(adaptor: str, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    model = fit(adaptor=adaptor, width=3, batch_size=16)
    model.save(path)
    found = sb.RETune.load(path)
    assert found.get_params() == model.get_params() and found.tasks_ == 1
    assert found.findings_ == model.findings_ and not hasattr(found, "losses_")
    assert_same_bits(found.decision_function(DATA.x), model.decision_function(DATA.x))
    assert_same_bits(further(found).losses_, further(model).losses_)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        sb.RETune.load(path)


# -- bad input ---------------------------------------------------------------------------------------------

SPOILT = DATA.x.clone()
SPOILT[3, 2] = float("nan")
THREE = DATA.y[:, FIRST]
BAD: dict[str, tuple[dict[str, Any], type, str]] = {
    "NaN": ({"X": SPOILT}, ValueError, r"X must be finite, got NaN or inf in 1 of 40 rows"),
    "labels": ({"Y": THREE + 1}, ValueError, r"Y must hold 0, 1, NaN or −1, got 2 in row"),
    "one column": ({"Y": THREE[:, 0]}, ValueError, r"Y must be \[N, L\], got .*; pass one column per"),
    "rows": ({"Y": THREE[1:]}, ValueError, r"Y must have 40 rows, got 39; pass one row of labels"),
    "columns": ({"Y": THREE[:, 1:]}, ValueError, r"Y must have 3 columns, got 2; pass findings"),
    "no label": (
        {"Y": torch.where(torch.tensor([False, True, False]), -1, THREE)}, ValueError,
        r"Y must hold a known label of every finding, got none of 'nodule'; leave the column out",
    ),
    "mask's dtype": ({"known": THREE}, TypeError, r"known must be a bool tensor or array, got a int64"),
    "mask's shape": ({"known": THREE[1:] > 0}, ValueError, r"known must be \[40, 3\], got"),
    "one name": ({"findings": "edema"}, TypeError, r"findings must be several names, got 'edema'; pass"),
    "twice": (
        {"findings": ["a", "a", "b"]}, ValueError,
        r"findings must be distinct names, got 3 names, 2 of them different; name every column",
    ),
    "unhashable": ({"findings": [[1], 2, 3]}, TypeError, r"findings must hold hashable names, got list"),
    "no pairs": ({"prompt_features": DATA.prompts[:, 0]}, ValueError, r"prompt_features must be \[k"),
    "prompts' count": ({"prompt_features": DATA.prompts}, ValueError, r"prompt_features must be \[3, 2"),
    "prompts' width": (
        {"prompt_features": DATA.prompts[FIRST][..., 1:]}, ValueError, r"prompt_features must have width 8",
    ),
    "prompts' NaN": ({"prompt_features": DATA.prompts[FIRST] / 0}, ValueError, r"prompt_features must be "),
    "no prompts": ({"prompt_features": None}, ValueError, r"prompt_features must be given, got None; pass"),
    "adaptor": ({"adaptor": "deep"}, ValueError, r"adaptor must be one of 'linear', .* got 'deep'"),
    "width": ({"width": 0}, ValueError, r"width must be ≥ 1, got int 0"),
    "epochs": ({"epochs": 1.5}, TypeError, r"epochs must be a whole number, got float 1.5"),
    "batch": ({"batch_size": 0}, ValueError, r"batch_size must be ≥ 1, got int 0; None takes all"),
    "rate": ({"lr": 0}, ValueError, r"lr must be above 0, got int 0"),
    "residual": ({"residual": float("inf")}, ValueError, r"residual must be above 0, got float inf"),
    "decay": ({"weight_decay": -1}, ValueError, r"weight_decay must be ≥ 0, got int -1; 0 leaves it out"),
    "progress": ({"progress": 1}, TypeError, r"progress must be True or False, got int 1"),
    "diverged": ({"lr": 1e300, "weight_decay": 1e10}, ValueError, r"the loss must stay finite, got nan in"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    changed, kind, told = BAD[case]
    with pytest.raises(kind, match=f"^RETune.fit: {told}"):
        fit(**changed)


FURTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown finding": ({}, {"prompt_features": None}, r"findings must have prompts, got 'fracture', 'e"),
    "other prompts": (
        {}, {"findings": ["edema", "new"]}, r"prompt_features must stay what they were, got others of 'ed",
    ),
    "no names": ({}, {"findings": None}, r"findings must be given with prompt_features, got None; name"),
    "width": ({}, {"X": DATA.x[:, 1:]}, r"X has 7 features, but it is expecting 8"),
    "adaptor": ({"adaptor": "bottleneck"}, {}, r"adaptor must stay 'linear' from task to task, got 'bott"),
    "residual": ({"residual": 0.5}, {}, r"residual must stay 1.0 from task to task, got 0.5; set it"),
    "scale": ({"logit_scale": 20}, {}, r"logit_scale must stay 10.0 from task to task, got 20.0"),
    "columns": ({}, {"findings": None, "prompt_features": None}, r"Y must have 3 columns, got 2"),
    "diverged": ({"lr": 1e300, "weight_decay": 1e10}, {}, r"the loss must stay finite"),
    "last step": ({"lr": 1e300, "weight_decay": 1e300, "epochs": 1}, {}, r"the adaptors must stay finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", FURTHER)
def test_a_task_that_fails_leaves_the_model(case: str):
    params, changed, told = FURTHER[case]
    model = fit()
    want, losses = model.decision_function(DATA.x), model.losses_
    given: dict[str, Any] = {
        "X": DATA.x, "Y": DATA.y[:, SECOND], "prompt_features": DATA.prompts[SECOND],
        "findings": NAMES[3:], **changed,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"^RETune.partial_fit: {told}"):
        model.set_params(**params).partial_fit(given.pop("X"), given.pop("Y"), **given)
    assert_same_bits(model.decision_function(DATA.x), want)
    assert model.findings_ == NAMES[:3] and model.tasks_ == 1 and model.losses_ is losses
    further(model.set_params(**fit().get_params()))


def test_findings_are_added_once():
    model = fit()
    with pytest.raises(ValueError, match=r"RETune.add_findings: findings must be new, got 'mass' again"):
        model.add_findings(DATA.prompts[:2], ["new", "mass"])
    with pytest.raises(ValueError, match=r"RETune.add_findings: findings must be given with prompt_features"):
        model.add_findings(DATA.prompts[:2])
    with pytest.raises(ValueError, match=r"RETune.add_findings: prompt_features must be \[3, 2, D\], got"):
        model.add_findings(DATA.prompts[:2], ["a", "b", "c"])
    assert model.findings_ == NAMES[:3]


def test_queries_are_checked():
    model = fit()
    for ask in (model.predict, model.decision_function, model.predict_proba):
        with pytest.raises(ValueError, match=r"RETune\.\w+: X has 7 features, but it is expecting 8"):
            ask(DATA.x[:, 1:])
        with pytest.raises(ValueError, match=r"X must be finite"):
            ask(SPOILT)
        with pytest.raises(ValueError, match="must be fitted first"):
            getattr(sb.RETune(), ask.__name__)(DATA.x)
    for y, told in (
        (DATA.y, "Y must have 3 columns, got 5"), (THREE[1:], "Y must have 40 rows, got 39"),
        (THREE * 0, "Y must hold a positive, got none; score images that show a finding"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"RETune.score: {told}"):
            model.score(DATA.x, y)
    with pytest.raises(ValueError, match=r"RETune.score: findings must have prompts, got 'gout' without"):
        model.score(DATA.x, THREE, findings=["edema", "gout", "mass"])
    with pytest.raises(ValueError, match="must be fitted first"):
        sb.RETune().save("x")
