"""Models by name: embedded, from open_clip's list, Hugging Face or local files; mistakes get near matches."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _digest
from semobridge_ext.cli.shards import Folder
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.hub_weights import check_fetched
from semobridge_ext.clip.projections import affine_image
from semobridge_ext.clip.texts import encode_text

EMBEDDED = "picto"
NOTE = (
    "model: the embedded CLIP, trained on drawings (icons, emoji, flags, logos); for photographs name one, "
    "for example --model ViT-B-32 --pretrained laion2b_s34b_b79k"
)


class Encoder(NamedTuple):
    """A CLIP model with its preprocessing and tokenizer."""

    model: Any
    preprocess: Any
    tokenizer: Any
    project: bool = True  # False: image features before their projection

    def texts(self, texts: Sequence[str]) -> Tensor:  # [N, D] float32, raw
        return encode_text(self.model, texts, tokenizer=self.tokenizer).float().cpu()

    def images(self, pixels: Tensor) -> Tensor:  # [B, 3, H, W] on its device -> [B, D or V] float32, raw
        adapter = adapter_of("encode_image", self.model)
        encode = adapter.encode_image if self.project else adapter.encode_image_hidden
        with torch.inference_mode():
            return encode(pixels).float().cpu()

    def before_projection(self, function: str) -> Encoder:
        """The same encoder, whose images stop before a linear projection; refused where there is none."""
        try:
            affine_image(function, adapter_of(function, self.model))
        except TypeError as error:
            got = adapter_of(function, self.model).vision_kind or type(self.model).__name__
            raise NotImplementedError(
                f"{function}: --before-projection must meet a model with a linear image projection, got "
                f"{got}; leave the option out"
            ) from error
        return self._replace(project=False)


def rows_of(encoder: Encoder, pixels: Tensor | None, device: str) -> np.ndarray:  # [n, D] float32
    """The features of a batch; [0, 0] where nothing in it could be decoded."""
    if pixels is None:
        return np.empty((0, 0), np.float32)
    return encoder.images(pixels.to(device, non_blocking=True)).numpy()


def add_arguments(parser: Any) -> None:
    text = "open_clip name, hf-hub:OWNER/NAME, local-dir:FOLDER; default: the embedded CLIP, for drawings"
    parser.add_argument("--model", metavar="NAME", help=text)
    parser.add_argument("--pretrained", metavar="TAG", help="open_clip tag or checkpoint file of --model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 .. (default: cpu)")


def add_maker(parser: Any) -> None:
    """The model of queries; `name_maker` reads what names it."""
    text = "what made the rows of a table that names no model; a name as `extract` takes it"
    parser.add_argument("--model", metavar="NAME", help=text)
    parser.add_argument("--pretrained", metavar="TAG", help="open_clip tag or checkpoint file of --model")
    parser.add_argument("--device", default="cpu", help="for the queries' model (default: cpu)")


def name_maker(folder: Folder, model: str | None, pretrained: str | None) -> None:
    """Takes the command's word for the model of rows that name none; refused beside settings that do."""
    if model is None and pretrained is None:
        return
    if "model" in (settings := folder.settings()):
        raise ValueError(
            f"{folder.function}: --model must stand with features that name no model, got "
            f"{model or pretrained} for {folder.path}, made by {settings['model']}; leave it out"
        )
    folder.maker = resolve(folder.function, model, pretrained)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def complete(function: str, option: str, word: str, known: Sequence[str]) -> str:
    """The one name that `word` stands for: itself, another spelling of it, or a beginning of it."""
    if word in known:
        return word
    same = [name for name in known if _plain(name) == _plain(word)]
    begins = [name for name in known if _plain(name).startswith(_plain(word))] if _plain(word) else []
    for found in (same, begins):
        if len(found) == 1:
            return found[0]
    plain = {_plain(name): name for name in known}
    near = begins or [plain[p] for p in difflib.get_close_matches(_plain(word), plain, n=4, cutoff=0.6)]
    if near:
        hint = f"did you mean {', '.join(sorted(near)[:8])}{' ..' if len(near) > 8 else ''}?"
    else:
        hint = f"for example {', '.join(list(known)[:4])}"
    raise ValueError(f"{function}: {option} must be one of {len(known)} known names, got '{word}'; {hint}")


def _pretrained(function: str, name: str, word: str | None) -> str:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if word is None:
        raise ValueError(
            f"{function}: --pretrained must be given with --model {name}, got none; "
            f"a checkpoint file, or one of {', '.join(tags) or 'no published tags'}"
        )
    if Path(word).is_file():
        return str(Path(word).resolve())
    if "/" in word or Path(word).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise FileNotFoundError(
            f"{function}: --pretrained must be an existing file, got {word}; check the name"
        )
    return complete(function, "--pretrained", word, tags)


def resolve(function: str, model: str | None, pretrained: str | None) -> tuple[str, str | None]:
    """Full names of what the user asked for, or ValueError with near matches."""
    model = EMBEDDED if model is None else model
    if model.startswith(("hf-hub:", "local-dir:")):
        return model, pretrained
    if model == EMBEDDED:
        if pretrained is not None:
            raise ValueError(
                f"{function}: --pretrained must stand with --model, got {pretrained} for the embedded CLIP; "
                "name the architecture, for example --model ViT-B-32"
            )
        return model, None
    import open_clip

    name = complete(function, "--model", model, [*open_clip.list_models(), EMBEDDED])
    return name, None if name == EMBEDDED else _pretrained(function, name, pretrained)


def load(function: str, name: str, pretrained: str | None, device: str = "cpu") -> Encoder:
    """Loads what `resolve` named, in evaluation mode."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{function}: --device must be usable here, got '{device}' "
            f"({str(error).splitlines()[0]}); use cpu"
        ) from None
    if name == EMBEDDED:
        from semobridge_ext.data import load_picto_clip

        return Encoder(*load_picto_clip(device=device))
    import open_clip

    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            # Where the weights of a repository cannot be had, it would go on with random ones.
            name,
            pretrained=pretrained,
            device=device,
            weights_only=True,
            require_pretrained=True,
        )
        encoder = Encoder(model.eval(), preprocess, open_clip.get_tokenizer(name))
    except Exception as error:
        # Hugging Face's client, urllib and torch each raise their own kinds here.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RuntimeError(
            f"{function}: --model {name} with --pretrained {pretrained} must load, got {reason}; "
            "without a network pass --pretrained a checkpoint file, or local-dir:FOLDER"
        ) from error
    check_fetched(function, name, pretrained)
    return encoder


def maker_of(function: str, folder: Folder, device: str = "cpu", remedy: str = "extract again") -> Encoder:
    """The model that made a folder of shards; refused where its weights are others by now."""
    if folder.maker is not None:
        return load(function, *folder.maker, device)
    settings = folder.settings()
    if "model" not in settings or not {"weights", "weights_sha256"} & set(settings):
        raise ValueError(
            f"{function}: {folder.path}/settings.json must name the model and the digest of its weights, got "
            f"{sorted(settings)}; {remedy}"
        )
    encoder = load(function, settings["model"], settings.get("pretrained"), device)
    if "weights" in settings:
        same = weights_digest(encoder.model) == settings["weights"]
    else:  # a folder of version 0.1.0
        same = _weights_sha256(encoder.model) == settings["weights_sha256"]
    if not same:
        raise ValueError(
            f"{function}: the model must be the one that made {folder.path}, got other weights under the "
            f"name {settings['model']}; {remedy}"
        )
    return encoder


def prompts(function: str, names: Sequence[str], template: str) -> list[str]:
    """The class names in a template's place; underscores of folder names become spaces."""
    if "{}" not in template:
        raise ValueError(
            f"{function}: --template must contain {{}}, got '{template}'; write for example 'a photo of {{}}'"
        )
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def weights_digest(model: Any) -> str:
    """Of all weights: names of files say nothing about what is in them."""
    return _digest.marked(_digest.digest(model.state_dict()))


def _weights_sha256(model: Any) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{value.dtype}{list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
