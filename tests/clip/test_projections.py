"""clip/projections.py and Bridge.from_clip: every kind of model, with tiny random weights.

Text width and embedding width are equal, so that a transposed matrix has the right shape and only
the values can tell.
"""

from __future__ import annotations

import copy
import importlib.util
import pathlib

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

import semobridge_ext as sb
from semobridge_ext.clip import text_projection
from tests.support.assertions import assert_close, assert_row_relative
from tests.support.projections import chain

WIDTH, VOCABULARY, CONTEXT = 32, 64, 8
IDS = torch.tensor([[62, 5, 9, 63, 0, 0, 0, 0], [62, 7, 3, 11, 63, 0, 0, 0]])


def open_clip_model(kind: type[nn.Module], **text: object) -> nn.Module:
    torch.manual_seed(3)
    text = dict(width=WIDTH, heads=2, layers=1, vocab_size=VOCABULARY, context_length=CONTEXT) | text
    vision = dict(image_size=16, patch_size=8, width=WIDTH, head_width=16, layers=1)
    return kind(WIDTH, vision, text).eval()


def open_clip_linear() -> nn.Module:
    """open_clip builds a Linear only with a bias; converted checkpoints carry one without."""
    model = open_clip_model(CLIP)
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.weight.data = model.text_projection.data.T.contiguous()
    del model.text_projection
    model.text_projection = layer
    return model


def hugging_face() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    sizes = dict(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    text = sizes | dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, eos_token_id=63)
    vision = sizes | dict(image_size=16, patch_size=8)
    torch.manual_seed(3)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).eval()


class OpenAIShaped(nn.Module):
    """What OpenAI's `clip.load` hands out on a GPU: float16 matrices, float32 LayerNorm, `@` with W."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_final = nn.LayerNorm(WIDTH)
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH).half()
        self.text_projection = nn.Parameter((torch.randn(WIDTH, WIDTH) * WIDTH**-0.5).half())

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.ln_final(self.token_embedding(ids).float()).half()
        return x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection


def unprojected(model: nn.Module) -> Tensor:
    """The text features before the projection, by the model's own forward with the projection out."""
    bare = copy.deepcopy(model)
    if hasattr(bare, "text_model"):  # Hugging Face
        return bare.text_model(IDS).pooler_output
    owner = bare.text if isinstance(bare, CustomTextCLIP) else bare
    eye = torch.eye(WIDTH, dtype=text_projection(model).dtype)
    if isinstance(owner.text_projection, nn.Linear):
        owner.text_projection.weight.data = eye
    else:
        owner.text_projection.data = eye
    return bare.encode_text(IDS)


def projected(model: nn.Module) -> Tensor:
    if hasattr(model, "text_model"):
        return model.text_projection(model.text_model(IDS).pooler_output)
    return model.encode_text(IDS)


MODELS = {
    "open_clip CLIP, parameter": lambda: open_clip_model(CLIP),
    "open_clip CLIP, Linear": open_clip_linear,
    "open_clip CustomTextCLIP, parameter": lambda: open_clip_model(CustomTextCLIP),
    "Hugging Face CLIPModel": hugging_face,
    "OpenAI shape, float16": OpenAIShaped,
}


@pytest.mark.parametrize("name", MODELS)
def test_projection_maps_text_features(name: str):
    torch.manual_seed(4)
    model = MODELS[name]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        want, bare = projected(model), unprojected(model)
        w = text_projection(model)
        assert w.shape == (WIDTH, WIDTH) and not w.requires_grad
        assert w.dtype is want.dtype
        assert_row_relative(
            bare.double() @ w.double(), want.double(), "features", dtype=w.dtype, context=name
        )
        turned = bare.double() @ w.double().T
        assert float((turned - want.double()).norm()) > 0.1 * float(want.double().norm())

        b = sb.Bridge.from_clip(model, text_length=2.0)
        f = torch.randn(5, WIDTH)
        assert_close(b(f), chain(f, w), "bridge", context=name)
        assert_close(b(f.to(w.dtype)), chain(f.to(w.dtype), w), "bridge", context=name)
        assert_close(b(f, normalize=False), chain(f, w, text_length=2.0, normalize=False), "bridge")
        assert_close(sb.use(model)(f), chain(f, w), "bridge", context="use(model)")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was modified"
    with torch.no_grad():  # the bridge holds its own copy
        kept = b(f)
        text_projection(model).mul_(2).add_(1)
        assert torch.equal(b(f), kept)


@pytest.mark.parametrize("atol", [0.0, 0.3, 0.9])
def test_atol_is_passed_on(atol: float):
    model = open_clip_model(CLIP)
    with torch.no_grad():
        model.text_projection.copy_(torch.randn(WIDTH, WIDTH) * WIDTH**-0.5)
    singular = torch.linalg.svdvals(model.text_projection.detach().double())
    b = sb.Bridge.from_clip(model, atol=atol)
    assert b.atol == atol and b.rank == int((singular > atol).sum())


@pytest.mark.skipif(
    importlib.util.find_spec("clip") is None,
    reason="OpenAI's clip is not installed (pip install openai-clip)",
)
def test_openai_clip_itself():
    # Its package __init__ imports pkg_resources, which recent setuptools lacks; the model file does not.
    folder = pathlib.Path(next(iter(importlib.util.find_spec("clip").submodule_search_locations)))
    spec = importlib.util.spec_from_file_location("openai_clip_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(3)
    # width 64: its heads are 64 wide
    model = module.CLIP(48, 16, 1, 64, 8, CONTEXT, VOCABULARY, 64, 1, 1).eval()
    module.convert_weights(model)
    w = text_projection(model)
    assert w.shape == (64, 48) and w.dtype is torch.float16 and not w.requires_grad
    with torch.no_grad():
        model.text_projection.copy_(torch.randn(64, 48) * 0.3)
    f = torch.randn(5, 48).half()
    got = sb.bridge(f, bridge=sb.use(model))
    assert got.dtype is torch.float16
    assert_close(got, chain(f, model.text_projection.detach()), "bridge")


# -- refusals ----------------------------------------------------------------------------------------


def _nonlinear_head() -> nn.Module:
    tower = nn.Module()
    tower.proj = nn.Sequential(nn.Linear(8, 8, bias=False), nn.GELU(), nn.Linear(8, 4, bias=False))
    model = nn.Module()
    model.text = tower
    return model


REFUSED = {
    "no projection": (lambda: open_clip_model(CLIP, proj_type="none", width=WIDTH), "without one"),
    "nonlinear head": (_nonlinear_head, "Sequential"),
    "another module": (lambda: nn.Linear(4, 4), "got Linear;"),
    "a tensor": (lambda: torch.eye(4), "Tensor"),
    "a string": (lambda: "ViT-B-32", "str"),
    "what create_model_and_transforms returns": (lambda: (nn.Linear(2, 2), None, None), "tuple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str):
    make, named = REFUSED[case]
    model = make()
    for name, call in (("text_projection", text_projection), ("Bridge.from_clip", sb.Bridge.from_clip)):
        with pytest.raises(TypeError, match=rf"^{name}: .+ must .+, got .+; \S.+") as caught:
            call(model)
        assert named in str(caught.value)


def test_half_precision_linear_text_tower_of_open_clip():
    """CustomTextCLIP around a Hugging Face text tower keeps its map as `text.proj`."""
    tower = nn.Module()
    tower.proj = nn.Linear(8, 4, bias=False).half()
    model = nn.Module()
    model.text = tower
    assert torch.equal(text_projection(model), tower.proj.weight.T)
