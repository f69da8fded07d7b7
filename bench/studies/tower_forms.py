"""Who runs OTI and OVI for each configuration of open_clip: the engine, the model itself, or nobody.

Every configuration is built with random weights and tiny widths, so that its form stays what it is: blocks,
pooling, masks, positions, trunks of timm and text towers of transformers. Configurations of one form are
built once. The features before the first step are compared with the model's own where the oracle runs.

    python bench/studies/tower_forms.py
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import timm
import torch
import transformers
from open_clip import hf_model
from torch import nn

import semobridge_ext as sb

FOLDER = Path(open_clip.__file__).parent / "model_configs"
CONTEXT, WORDS, D = 16, 300, 24
_SIZES = re.compile(r"\d+|tiny|small|base|large|xlarge|xxlarge|huge|giant|giantopt|gigantic|enormous|medium")
_create = timm.create_model


class Words:
    """A start token, one id a word, an end token that is the largest id, zeros."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        out = torch.zeros(len(texts), context_length or self.context_length, dtype=torch.int64)
        for row, text in zip(out, texts, strict=True):
            ids = [10 + sum(map(ord, word)) % 200 for word in text.split()]
            ids = [WORDS - 2, *ids[: len(row) - 2], WORDS - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out


def tiny_trunk(name: str, **given: Any) -> nn.Module:
    """timm's model of that name, two blocks of width 32 where it can be made so."""
    given = {**given, "pretrained": False}
    for part, kept, small in (
        ("vitamin", "vitamin_small_224", {}),
        ("fastvit", "fastvit_mci0", {}),
        ("vit_base_mci", None, {"depth": 2}),
        ("convnext", None, {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}),
        ("swin", None, {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
    ):
        if part in name:
            return _create(kept or name, **given, **small)
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    return _create(name, **given, **small, **({"attn_pool_num_heads": 2} if "pe_core" in name else {}))


def tiny_words(name: str, **_: Any) -> Any:
    """The configuration of a text tower of transformers by its name."""
    if "mt5" in name:
        sizes = {"d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 3}
        return transformers.MT5Config(**sizes, vocab_size=WORDS, pad_token_id=0)
    if "nllb" in name:
        sides = {f"{s}_{k}": v for s in ("encoder", "decoder")
                 for k, v in (("layers", 2), ("attention_heads", 3), ("ffn_dim", 96))}  # fmt: skip
        return transformers.M2M100Config(d_model=48, vocab_size=WORDS, max_position_embeddings=40,
                                         pad_token_id=0, **sides)  # fmt: skip
    kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
    return kind(hidden_size=48, intermediate_size=96, num_attention_heads=3, num_hidden_layers=2,
                vocab_size=WORDS, max_position_embeddings=40, pad_token_id=0)  # fmt: skip


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = D
    if name := vision.get("timm_model_name"):
        whole = re.search("vitamin|swin|mci", name)
        vision["image_size"] = (256 if "fastvit" in name else 224) if whole else 64
        if vision.get("timm_proj") == "none":
            config["embed_dim"] = 32
        if "vit_base_mci" in name:
            vision["timm_proj"] = "linear"
    elif isinstance(vision["layers"], list):
        vision.update(layers=[1, 1, 1, 1], width=16, image_size=64)
    else:
        vision.update(layers=2, width=32, head_width=16, patch_size=8, image_size=32)
        if "attn_pooler_heads" in vision:
            vision["attn_pooler_heads"] = 2
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        text.setdefault("hf_proj_type", "linear")
    else:
        text.update(width=48, heads=3, layers=2, context_length=CONTEXT, vocab_size=WORDS)
    if text.get("pool_type") == "eos":
        text["eos_id"] = WORDS - 1
    if more := config.get("multimodal_cfg"):
        more.update(
            width=48, heads=3, layers=1, context_length=CONTEXT, vocab_size=WORDS, attn_pooler_heads=3
        )
    return config


def form_of(config: dict[str, Any]) -> str:
    """What is left of a configuration without sizes and names of tokenizers."""
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_name"] = _SIZES.sub("", vision["timm_model_name"])
        vision.pop("image_size")
    text = {k: v for k, v in text.items() if "tokenizer" not in k and k != "mlp_ratio"}
    return json.dumps([vision, text, "multimodal_cfg" in config, config.get("quick_gelu")], sort_keys=True)


def build(config: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    names = ("embed_dim", "multimodal_cfg", "text_cfg", "vision_cfg", "quick_gelu")
    given = {name: config[name] for name in names if name in config}
    if "multimodal_cfg" in config:
        return open_clip.CoCa(**given).eval()
    custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**given).eval()


def runs(model: nn.Module, side: str) -> str:
    """The engine, and the largest difference from the oracle's first features where it runs."""
    own = {"tokenizer": Words(CONTEXT)} if side == "text" else {}
    run, oracle = (sb.oti, sb.reference.oti) if side == "text" else (sb.ovi, sb.reference.ovi)
    with torch.no_grad():
        if side == "text":
            width = model.encode_text(Words(CONTEXT)(["a"])).shape[1]
        else:
            size = model.visual.image_size
            sides = size if isinstance(size, tuple) else (size, size)
            width = model.encode_image(torch.zeros(1, 3, *sides)).shape[1]
    targets = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    try:
        found = run(model, targets, steps=1, record_steps=(0,), **own,
                    generator=torch.Generator().manual_seed(2))  # fmt: skip
    except NotImplementedError as error:
        return f"refused: {str(error).partition(', got ')[2].partition(';')[0]}"
    init = torch.randn(found.tokens.shape, generator=torch.Generator().manual_seed(2)) * 0.02
    try:
        want = oracle(model, targets, steps=1, init=init, record_steps=(0,), **own)
    except (AttributeError, RuntimeError):  # text towers of transformers; patches in another order
        return found.engine
    return f"{found.engine}, {float((found.recorded[0] - want.recorded[0]).abs().max()):.0e}"


def main() -> None:
    logging.getLogger("semobridge_ext").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    forms: dict[str, list[str]] = {}
    configs = {}
    for path in sorted(FOLDER.glob("*.json")):
        config = shrunk(json.loads(path.read_text(encoding="utf-8")))
        forms.setdefault(form_of(config), []).append(path.stem)
        configs[path.stem] = config
    counts = {"text": Counter(), "vision": Counter()}
    with (
        mock.patch.object(timm, "create_model", tiny_trunk),
        mock.patch.object(hf_model.AutoConfig, "from_pretrained", tiny_words),
    ):
        for names in forms.values():
            model = build(configs[names[0]])
            for side, count in counts.items():
                told = runs(model, side)
                count[told.partition(",")[0].partition(":")[0]] += len(names)
                print(f"{names[0]:36} × {len(names):<3} {side:7} {told}", flush=True)
    for side, count in counts.items():
        print(f"{side}: {dict(count)} of {sum(count.values())}")


if __name__ == "__main__":
    main()
