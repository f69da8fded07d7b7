"""SeMoBridge-T over the emulated CUDA kernels: gradients, trajectories, and the step as a graph repeats it.

The emulated module takes CPU tensors where the real one takes CUDA tensors; everything else is the same.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training import cuda as training_cuda
from semobridge_ext._engines.bridge_training import step as bridge_training
from semobridge_ext._engines.bridge_training.choice import Choice
from semobridge_ext._engines.bridge_training.cost import counted_step
from semobridge_ext._engines.bridge_training.cpu import CpuTrainingPieces
from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext.fewshot.training_schedule import PRESETS
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.step_graph import repeatable
from tests.support.assertions import assert_figures, assert_row_relative
from tests.support.graph_recorder import Recorder
from tests.support.problems import make
from tests.support.training import (
    LOSSES,
    SHAPES,
    autograd_trajectory,
    check_gradients,
    classifier,
    in_order,
    trainer_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def recorder(emulated, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The kernels in place of the CPU's, every trainer captured."""
    recorder = Recorder()
    monkeypatch.setattr(training_cuda, "_C", recorder.native(emulated))
    monkeypatch.setattr(bridge_training, "choose", lambda *_: Choice(CudaTrainingPieces))
    monkeypatch.setattr(bridge_training, "repeatable", partial(repeatable, capture=recorder.capture))
    return recorder


@pytest.mark.parametrize(
    "loss,shape,class_bias",
    [("all", shape, class_bias) for shape in SHAPES for class_bias in (True, False)]
    + [(loss, "unequal", True) for loss in LOSSES]
    + [(loss, "one shot", False) for loss in LOSSES if loss != "bias"],
)
def test_gradients(loss: str, shape: str, class_bias: bool):
    classes, shots, width, text_width = SHAPES[shape]
    p = make(classes, shots, 2, width, text_width)
    trainer = trainer_of(p, LOSSES[loss], class_bias)
    if class_bias:
        trainer.parameters["tau"].normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    got = trainer.loss_and_gradients()
    check_gradients(p, trainer, got)


def test_trajectory_of_200_steps(recorder: Recorder):
    """Against autograd of the reference with torch's AdamW: losses within 1e-4 relative."""
    p = make(7, 3, 2, 26, 21)  # small, because 200 emulated steps are long
    schedule = PRESETS["paper"]._replace(warmup=50)
    trainer = trainer_of(p, LossWeights(), scale=100.0)
    trainer.plan([schedule.rate(i) for i in range(200)], 0.01)
    got = [float(trainer.step()) for _ in range(200)]
    assert recorder.replays == 200 and trainer.losses.tolist() == got
    want, wanted = autograd_trajectory(p, schedule, 200)
    ratios = [a / b for a, b in zip(got, want, strict=True)]
    worst = assert_figures(ratios, [1.0] * 200, "trajectory", dtype=torch.float32)
    print(f"  worst loss of 200 steps: {worst:.1e}; {len(recorder.launches)} launches a step")
    for name, exact in zip(("inverse", "tau"), wanted, strict=True):
        assert_row_relative(trainer.parameters[name].flatten(), exact.flatten().double(), "trajectory_end")


@pytest.mark.parametrize("chunks", [1 << 20, 1])
@pytest.mark.parametrize("loss", LOSSES)
def test_replays_are_the_steps(loss: str, chunks: int, recorder: Recorder, monkeypatch):
    monkeypatch.setattr(training_cuda, "CHUNK_VALUES_CUDA", chunks)
    p = make(50, [1, 2, 7, 3, 2] * 10, 2, 21, 19)
    replayed, stepped = (trainer_of(p, LOSSES[loss]) for _ in range(2))
    stepped._graph = False
    for trainer in (replayed, stepped):
        trainer.plan([1e-3, 2e-3, 5e-3, 3e-3], 0.1)
        if loss == "bias":  # at 0 its gradient is 0
            trainer.parameters["tau"].normal_(generator=torch.Generator().manual_seed(1))
        for _ in range(4):
            trainer.step()
    assert recorder.replays == 4 and len(set(replayed.losses.tolist())) == 4
    assert len(recorder.launches) <= 40 + 5 * (len(replayed._chunks) - 1), recorder.launches
    for a, b in zip((replayed.losses, *replayed._flat), (stepped.losses, *stepped._flat), strict=True):
        assert torch.isfinite(a).all() and torch.equal(a, b)


def test_launches_of_a_whole_step(recorder: Recorder):
    """What docs/gpu.md counts; and the count without a GPU is that of the step itself."""
    p = make(12, 4, 2, 48, 40)
    trainer = trainer_of(p, LossWeights())
    trainer.plan([1e-3], 0.01)
    trainer.step()
    ours = [name.removesuffix("_cuda") for name in recorder.launches if name.endswith("_cuda")]
    noted: list[tuple[str, int]] = []
    shots, labels = in_order(p)
    step = counted_step(
        p.bridge().inverse, p.projection, shots, labels, p.text, p.hidden,
        note=lambda name, moved, _: noted.append((name, moved)),
    )  # fmt: skip
    assert not noted, "the workspaces' own step is not counted"
    step()
    assert [name for name, _ in noted] == ours and all(moved > 0 for _, moved in noted)
    moved = dict(noted)
    assert moved["adamw_flat"] == 4 * 7 * trainer._flat[0].numel()
    assert moved["row_loss"] == 12 * (4 * 2 * 12 + 4 + 8), "the last: text, no scale, no dot"
    products = len(recorder.launches) - len(ours)
    print(f"  {len(recorder.launches)} launches: {len(ours)} kernels and {products} of PyTorch")
    assert len(recorder.launches) <= 40


def test_fit_agrees_with_the_cpu(recorder: Recorder, monkeypatch, tmp_path):
    p = make(8, [2, 1, 3, 2, 4, 1, 2, 2], 60, noise=1.2)
    held = (p.queries, p.targets)
    with monkeypatch.context() as patch:
        patch.setattr(bridge_training, "repeatable", repeatable)
        patch.setattr(bridge_training, "choose", lambda *_: Choice(TorchTrainingPieces))
        cpu = classifier(p, eval_every=10, steps=30).fit(p.shots, p.labels, validation=held)
    path = tmp_path / "run.safetensors"
    cuda = classifier(p, eval_every=10, steps=30, checkpoint_every=10)
    cuda.fit(p.shots, p.labels, validation=held, checkpoint=path)
    assert recorder.replays == 30
    assert_figures(cuda.losses_, cpu.losses_, "trajectory", dtype=torch.float32)
    assert_row_relative(
        cuda.bridge_.inverse.flatten(), cpu.bridge_.inverse.flatten().double(), "trajectory_end"
    )
    resumed = classifier(p, eval_every=10, steps=30, checkpoint_every=10)
    resumed.fit(p.shots, p.labels, validation=held, checkpoint=path)
    assert recorder.replays == 40, "20 steps were kept"
    assert torch.equal(resumed.losses_, cuda.losses_) and torch.equal(resumed.tau_, cuda.tau_)


def test_a_bad_shot_spoils_its_class_first():
    """NaN in one shot: no other class's mean, length or τ-gradient from the shots changes."""
    p = make(5, 3, 2)
    labels = in_order(p)[1]
    good, bad = trainer_of(p, LossWeights()), trainer_of(p, LossWeights())
    bad.shots = bad.shots.clone()
    bad.shots[4, 2] = torch.nan
    for trainer in (good, bad):
        trainer.class_means()
    assert bad.mean.isnan().any(1).tolist() == [False, True, False, False, False]
    assert bad.r.isnan().nonzero().flatten().tolist() == [4]
    keep = labels != 1
    assert torch.equal(bad.r[keep], good.r[keep]) and torch.equal(
        bad.mean[[0, 2, 3, 4]], good.mean[[0, 2, 3, 4]]
    )


def test_choice(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    cuda = torch.device("cuda")
    monkeypatch.setattr(_backend, "HAS_CUDA", True)

    def choose(device: torch.device, dtype: torch.dtype) -> tuple[object, bool]:
        pieces, streamed, graph = bridge_training.choose("SeMoBridgeT", device, dtype)
        assert not streamed
        return pieces, graph

    assert choose(cuda, torch.float32) == (TorchTrainingPieces, True), "unmeasured: on request alone"
    with sb.backend("native"):
        assert choose(cuda, torch.float32) == (CudaTrainingPieces, True)
        with pytest.raises(NotImplementedError, match=r"^SeMoBridgeT: backend 'native' has no CUDA kernel"):
            choose(cuda, torch.float64)
    with sb.backend("eager"):
        assert choose(cuda, torch.float32) == (TorchTrainingPieces, False)
    assert choose(torch.device("cpu"), torch.float64) == (CpuTrainingPieces, True)
