"""SeMoBridge-T's wide products by halves over the emulated kernels, beside a stand-in for tensor cores."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from semobridge_ext._engines.bridge_training import cuda as training_cuda
from semobridge_ext._engines.bridge_training import step as bridge_training
from semobridge_ext._engines.bridge_training.choice import Choice
from semobridge_ext._engines.bridge_training.cost import counted_step
from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.step_graph import repeatable
from tests.support.graph_recorder import Recorder
from tests.support.problems import Problem, make
from tests.support.tensor_cores import TensorCores, tensor_cores
from tests.support.training import (
    LOSSES,
    NOTHING,
    SHAPES,
    check_gradients,
    in_order,
    trainer_of,
)

__all__ = ["tensor_cores"]

pytestmark = pytest.mark.slow
BOTH = NOTHING._replace(image=1.0, consistency=1.0)


@pytest.fixture(autouse=True)
def recorder(emulated, tensor_cores: TensorCores, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """As in test_training.py; the stand-in for a product of halves allocates, which cuBLAS's does not."""
    recorder = Recorder(no_allocation=False)
    monkeypatch.setattr(training_cuda, "_C", recorder.native(emulated))
    monkeypatch.setattr(bridge_training, "choose", lambda *_: Choice(CudaTrainingPieces))
    monkeypatch.setattr(bridge_training, "repeatable", partial(repeatable, capture=recorder.capture))
    monkeypatch.setattr(CudaTrainingPieces, "least", 0)
    return recorder


def with_tau(trainer: bridge_training.BridgeTrainer) -> bridge_training.BridgeTrainer:
    if "tau" in trainer.parameters:
        trainer.parameters["tau"].normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    return trainer


def stored_in(p: Problem, dtype: torch.dtype) -> Problem:
    """Whose shots a half type holds."""
    return p._replace(shots=p.shots.to(dtype).float())


@pytest.mark.parametrize(
    ("loss", "shape", "class_bias", "dtype"),
    [("all", "above D", True, torch.float32), ("both", "two classes", True, torch.float32),
     ("image", "unequal", True, torch.float32), ("consistency", "many classes", False, torch.float32),
     ("all", "one shot", False, torch.float16), ("consistency", "unequal", True, torch.bfloat16)],
)  # fmt: skip
def test_gradients(loss: str, shape: str, class_bias: bool, dtype: torch.dtype, tensor_cores: TensorCores):
    p = stored_in(make(*SHAPES[shape][:2], 2, *SHAPES[shape][2:]), dtype)
    trainer = with_tau(trainer_of(p, {**LOSSES, "both": BOTH}[loss], class_bias))
    parts = 2 if dtype is torch.float32 else 1
    assert trainer._halves.parts == parts, "shots of a half type are one half"
    got = trainer.loss_and_gradients()
    check_gradients(p, trainer, got)
    (n, d), wide = trainer.shots.shape, trainer.z.shape[1]
    assert tensor_cores.shapes == [(n, (parts + 1) * d, wide), (parts * d, n, 2 * wide)]


def test_rows_of_any_length():
    """A shot's length cancels in every loss but by τ: halves of a common scale would lose the short rows."""
    p = make(6, 3, 2, 24, 20)
    factors = 10.0 ** torch.linspace(-7, 7, len(p.shots))[torch.randperm(len(p.shots))].unsqueeze(1)
    p = p._replace(shots=p.shots * factors)
    trainer = trainer_of(p, BOTH, class_bias=False)
    check_gradients(p, trainer, trainer.loss_and_gradients())


def test_classes_of_any_size():
    """Rows of W⁺B that differ by orders have powers of their own."""
    p = make(6, 3, 2, 24, 20)
    trainer = with_tau(trainer_of(p, LossWeights()))
    trainer.parameters["inverse"].mul_(1e5)
    trainer.parameters["tau"].mul_(1e5)
    check_gradients(p, trainer, trainer.loss_and_gradients())


@pytest.mark.parametrize("chunks", [1 << 20, 1])
@pytest.mark.parametrize("loss", ["all", "image"])
def test_replays_are_the_steps(loss: str, chunks: int, recorder: Recorder, monkeypatch):
    monkeypatch.setattr(training_cuda, "CHUNK_VALUES_CUDA", chunks)
    p = make(4, [20, 29, 1, 26], 2, 9, 8)
    replayed, stepped = (trainer_of(p, LOSSES[loss]) for _ in range(2))
    stepped._graph = False
    assert (len(replayed._chunks) > 1) == (chunks == 1)
    for trainer in (replayed, stepped):
        trainer.plan([1e-3, 2e-3], 0.1)
        for _ in range(2):
            trainer.step()
    assert recorder.replays == 2 and len(set(replayed.losses.tolist())) == 2
    for a, b in zip((replayed.losses, *replayed._flat), (stepped.losses, *stepped._flat), strict=True):
        assert torch.isfinite(a).all() and torch.equal(a, b)
    check_gradients(p, replayed, replayed.loss_and_gradients())


def test_launches_of_a_whole_step(recorder: Recorder):
    """The count without a GPU is that of the step itself."""
    p = make(12, 4, 2, 48, 40)
    trainer = trainer_of(p, LossWeights())
    trainer.plan([1e-3], 0.01)
    trainer.step()
    ours = [name.removesuffix("_cuda") for name in recorder.launches if name.endswith("_cuda")]
    noted: list[str] = []
    products: list[tuple[int, int, int]] = []

    def note(name: str, moved: float, _: float, product: tuple[int, int, int] | None = None) -> None:
        assert moved > 0
        if product is None:
            noted.append(name)
        else:
            products.append(product)

    shots, labels = in_order(p)
    step = counted_step(p.bridge().inverse, p.projection, shots, labels, p.text, p.hidden, note=note)
    assert not noted and not products, "the workspaces' own step is not counted"
    step()
    assert noted == ours and {"cut_rows", "row_loss_halves", "class_sums_halves", "add_halves"} <= set(ours)
    assert products == [(48, 3 * 48, 24), (2 * 48, 48, 48)]


def test_where_they_are_not_taken(monkeypatch: pytest.MonkeyPatch, tensor_cores: TensorCores):
    p = make(6, 3, 2, 24, 20)
    assert trainer_of(p, LossWeights())._halves is not None
    assert trainer_of(p, LOSSES["bias"])._halves is None, "no wide product"
    size = 18 * 24 * 12
    monkeypatch.setattr(CudaTrainingPieces, "least", size + 1)
    assert trainer_of(p, LossWeights())._halves is None, "small products cost less than the launches"
    monkeypatch.setattr(CudaTrainingPieces, "least", size)
    assert trainer_of(p, LossWeights())._halves is not None
    monkeypatch.setattr("semobridge_ext.runtime.half_products.served", lambda x: False)
    trainer = trainer_of(p, LossWeights())
    assert trainer._halves is None, "no such products on the device"
    before = len(tensor_cores.products)
    check_gradients(p, trainer, trainer.loss_and_gradients())
    assert len(tensor_cores.products) == before


@pytest.mark.parametrize("piece", ["", "cut_rows", "half_product", "_cross_entropy_halves", "add_halves"])
def test_the_self_check_sees_them(piece: str, monkeypatch: pytest.MonkeyPatch, tensor_cores: TensorCores):
    """`auto` takes no wide product that was not compared with plain PyTorch's."""
    monkeypatch.setattr(CudaTrainingPieces, "least", 1 << 28)
    if piece:
        monkeypatch.setattr(CudaTrainingPieces, piece, lambda self, *args: None)
    found = self_check._compare((bridge_training.OP, "native", torch.float32, torch.device("cpu")))
    assert bool(found) == bool(piece), found
    assert bool(tensor_cores.products) == (piece != "half_product")
