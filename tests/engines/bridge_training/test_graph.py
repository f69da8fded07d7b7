"""SeMoBridge-T's step as a CUDA graph repeats it: static memory, nothing read back, one order of sums.

Over the recorder of tests/support/graph_recorder.py, with the pieces in plain PyTorch, which `auto` takes on
CUDA
devices. The same with the CUDA kernels: tests/cuda_emulation/test_training.py.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training import step as bridge_training
from semobridge_ext._engines.bridge_training import torch as torch_pieces
from semobridge_ext._engines.bridge_training.choice import Choice
from semobridge_ext._engines.bridge_training.spec import Batch, LossWeights
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext.runtime.step_graph import repeatable
from tests.support.assertions import assert_figures
from tests.support.graph_recorder import Recorder
from tests.support.problems import make
from tests.support.training import LOSSES, classifier, trainer_of

STEPS = 9
RATES = [1e-3 * (1 + 0.3 * i) for i in range(STEPS)]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = bridge_training.choose
    monkeypatch.setattr(
        bridge_training, "choose", lambda *a: Choice(TorchTrainingPieces, graph=choose(*a).graph)
    )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, plain: None) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(bridge_training, "repeatable", partial(repeatable, capture=recorder.capture))
    return recorder


def run(trainer: bridge_training.BridgeTrainer, steps: int = STEPS) -> list[torch.Tensor]:
    for _ in range(steps):
        trainer.step()
    return [trainer.losses, *trainer.parameters.values()]


@pytest.mark.parametrize(
    "loss,dtype,chunks",
    [(loss, torch.float32, "one chunk") for loss in LOSSES]
    + [(loss, torch.float32, "several chunks") for loss in ("all", "image", "consistency")]
    + [("all", torch.float64, "one chunk")],
)
def test_replays_are_the_steps(loss: str, dtype: torch.dtype, chunks: str, recorder, monkeypatch):
    if chunks == "several chunks":
        monkeypatch.setattr(torch_pieces, "CHUNK_VALUES", 1)
    p = make(50, [1, 2, 7, 3, 2] * 10, 2, 21, 19, dtype=dtype)
    replayed, stepped = (trainer_of(p, LOSSES[loss]) for _ in range(2))
    stepped._graph = False
    for trainer in (replayed, stepped):
        assert (
            len(trainer._chunks) > 1 or chunks == "one chunk" or loss not in ("all", "image", "consistency")
        )
        trainer.plan(RATES, 0.1)
        if loss == "bias":  # at 0 its gradient is 0
            trainer.parameters["tau"].normal_(generator=torch.Generator().manual_seed(1))
    start = {name: value.clone() for name, value in replayed.parameters.items()}
    got, want = run(replayed), run(stepped)
    assert recorder.replays == STEPS and len(recorder.launches) > 40
    print(f"  {loss}, {dtype}, {len(replayed._chunks)} chunks: {len(recorder.launches)} launches a step")
    for a, b in zip(got, want, strict=True):
        assert torch.isfinite(a).all() and torch.equal(a, b)
    moved = [n for n, value in replayed.parameters.items() if not torch.equal(value, start[n])]
    assert moved and len(set(replayed.losses.tolist())) == STEPS, "a step that does nothing repeats easily"


def test_a_captured_step_counts_on_the_device(recorder):
    p = make(6, 3, 2)
    trainer = trainer_of(p, LossWeights())
    trainer.plan(RATES, 0.1)
    first = [t.clone() for t in run(trainer)]
    assert trainer.steps == STEPS and int(trainer._count) == STEPS and int(trainer._now) == STEPS - 1
    # Back to where it was, the graph of before goes on from there: rates of 5, 6, …
    again = trainer_of(p, LossWeights())
    again.plan(RATES, 0.1)
    run(again, 5)
    kept = [t.clone() for t in again._flat]
    run(again, 2)
    for tensor, old in zip(again._flat, kept, strict=True):
        tensor.copy_(old)
    again.steps = 5
    for a, b in zip(run(again, STEPS - 5), first, strict=True):
        assert torch.equal(a, b)


def test_a_plan_of_one_step_survives_the_warm_up(recorder):
    trainer = trainer_of(make(6, 3, 2), LossWeights())
    trainer.plan([1e-3], 0.1)
    assert torch.isfinite(trainer.step()) and trainer.losses.shape == (1,) and trainer.steps == 1


def test_eager_has_no_graph(recorder):
    with sb.backend("eager"):
        trainer = trainer_of(make(6, 3, 2), LossWeights())
    trainer.plan(RATES, 0.1)
    trainer.step()
    assert recorder.replays == 0 and not recorder.launches


def test_a_killed_run_continues_with_a_new_graph(recorder, tmp_path, monkeypatch):
    p, path = make(8, 2, 60, noise=1.2), tmp_path / "run.safetensors"
    held = (p.queries, p.targets)
    whole = classifier(p, eval_every=10, steps=40).fit(p.shots, p.labels, validation=held)
    assert recorder.replays == 40
    take, calls = bridge_training.BridgeTrainer.step, []

    def dies(self):
        calls.append(1)
        if len(calls) == 33:
            raise KeyboardInterrupt
        return take(self)

    with monkeypatch.context() as patch:
        patch.setattr(bridge_training.BridgeTrainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            classifier(p, eval_every=10, steps=40, checkpoint_every=15).fit(
                p.shots, p.labels, validation=held, checkpoint=path
            )
    again = classifier(p, eval_every=10, steps=40, checkpoint_every=15)
    again.fit(p.shots, p.labels, validation=held, checkpoint=path)
    assert recorder.replays == 40 + 32 + 10, "30 steps were kept"
    assert torch.equal(again.losses_, whole.losses_) and again.validation_ == whole.validation_
    assert torch.equal(again.bridge_.inverse, whole.bridge_.inverse) and torch.equal(again.tau_, whole.tau_)


def test_class_sums_have_one_order_and_keep_nan_apart():
    """The sum of each class is that of its rows alone, one after the other."""
    counts = [3, 1, 40, 2]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    pieces = TorchTrainingPieces(
        Batch(labels, offsets, offsets.tolist(), torch.tensor(counts).view(-1, 1).float(), 5)
    )
    x = torch.randn(46, 5)
    x[1, 2] = torch.nan
    out = torch.empty(4, 5)
    pieces._class_sums(x, (0, 4), out)
    assert out.isnan().nonzero().tolist() == [[0, 2]]
    part = torch.empty(2, 5)
    pieces._class_sums(x[4:], (2, 4), part)
    assert torch.equal(part, out[2:])
    want = torch.stack([rows.double().sum(0) for rows in x.split(counts)])
    assert_figures(out, want, "class_sums", dtype=torch.float32)
