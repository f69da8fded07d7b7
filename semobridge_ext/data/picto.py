"""The embedded CLIP and its evaluation sets: offline, no pickle, loaded in well under two seconds.

Dimensions: N drawings, C classes, H = W = 48 pixels, D = 192 joint features, T = 192 text width.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.clip.template import clip_tokenizer
from semobridge_ext.data.undrawn import Undrawn
from semobridge_ext.runtime.plain_modes import plain_device

_FOLDER = Path(__file__).parent
_SIZE = 48
_COLUMNS = 64  # tiles a line in the image sheets


@dataclass(frozen=True)
class PictoDataset:
    """One embedded evaluation set; its parts are fixed, and no drawing's style was trained on.

    Attributes:
        name: the set's name, as `load_picto` takes it.
        description: one line on what the classes are.
        images: [N, 48, 48, 3] uint8, on white.
        labels: [N] int64, indices into `class_names`.
        class_names: C names, plain words.
        styles: N names of drawing styles, one a drawing (the icon set it comes from).
        train, val, test: [N] bool, the fixed parts: disjoint, together all drawings; every class has
            drawings in all three. A class's drawings from one family of styles stay in one part.
    """

    name: str
    description: str
    images: Tensor
    labels: Tensor
    class_names: list[str]
    styles: list[str]
    train: Tensor
    val: Tensor
    test: Tensor

    def __len__(self) -> int:
        """Number of drawings N."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    def texts(self, template: str = "{}") -> list[str]:
        """The C class names put into `template`, for the tokenizer."""
        if not isinstance(template, str) or "{}" not in template:
            remedy = "write for example 'a drawing of {}'"
            raise ValueError(
                _errors.message("PictoDataset.texts", "template", "contain {}", template, remedy)
            )
        return [template.replace("{}", name) for name in self.class_names]


def _check_name(name: Any) -> None:
    remedy = "list_picto() gives the names"
    if not isinstance(name, str):
        raise TypeError(_errors.message("load_picto", "name", "be a string", _errors.describe(name), remedy))
    if name not in list_picto():
        contract = f"be one of {', '.join(list_picto())}"
        raise ValueError(_errors.message("load_picto", "name", contract, repr(name), remedy))


def _damaged(function: str, contract: str, path: Path, error: Exception) -> RuntimeError:
    return RuntimeError(
        _errors.message(
            function, "embedded file", contract, f"{path.name} ({error})", "reinstall semobridge-ext"
        )
    )


@cache
def _read_sets() -> dict[str, Any]:
    return _read_json("load_picto", _FOLDER / "picto_sets.json")


def _read_json(function: str, path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(function, "be readable JSON", path, error) from error


def _read_tiles(path: Path, count: int) -> Tensor:
    """The first `count` 48x48 tiles of a sheet, [count, 48, 48, 3] uint8."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            sheet = np.asarray(picture.convert("RGB"))
        lines = sheet.shape[0] // _SIZE
        tiles = (
            sheet.reshape(lines, _SIZE, _COLUMNS, _SIZE, 3)
            .transpose(0, 2, 1, 3, 4)
            .reshape(-1, _SIZE, _SIZE, 3)
        )
        if len(tiles) < count:
            raise ValueError(f"{len(tiles)} tiles where {count} are listed")
    except (OSError, ValueError, SyntaxError) as error:
        raise _damaged("load_picto", "be a PNG sheet of 48x48 tiles", path, error) from error
    return torch.from_numpy(tiles[:count].copy())


def list_picto() -> list[str]:
    """Names of the embedded evaluation sets.

    Returns:
        The names that ``load_picto`` takes, sorted.

    Example:
        >>> from semobridge_ext import list_picto
        >>> list_picto()
        ['arrows', 'emoji', 'flags', 'icons', 'logos']
    """
    return sorted(_read_sets())


@plain_device()
def load_picto(name: str) -> PictoDataset:
    """Load one embedded evaluation set.

    Args:
        name: one of `list_picto()`.

    Returns:
        A `PictoDataset` with its own tensors, on the CPU.

    Raises:
        TypeError: name is no string. ValueError: there is no such set. RuntimeError: a damaged file.

    Example:
        >>> from semobridge_ext import load_picto
        >>> flags = load_picto("flags")
        >>> tuple(flags.images.shape[1:]), flags.images.dtype
        ((48, 48, 3), torch.uint8)
    """
    _check_name(name)
    listed = _read_sets()[name]
    images = torch.empty(len(listed["labels"]), _SIZE, _SIZE, 3, dtype=torch.uint8)
    sheets = torch.tensor([ord(c) for c in listed["sheets"]])
    for letter, kind in (("g", "gray"), ("c", "colour")):
        mine = sheets == ord(letter)
        if mine.any():
            images[mine] = _read_tiles(_FOLDER / f"picto_{name}_{kind}.png", int(mine.sum()))
    parts = torch.tensor([ord(c) for c in listed["parts"]])
    return PictoDataset(
        name=name,
        description=listed["description"],
        images=images,
        labels=torch.tensor(listed["labels"], dtype=torch.int64),
        class_names=list(listed["class_names"]),
        styles=[listed["style_names"][i] for i in listed["styles"]],
        train=parts == ord("t"),
        val=parts == ord("v"),
        test=parts == ord("e"),
    )


def picto_transform(images: Tensor) -> Tensor:
    """Turn many uint8 drawings at once into the embedded CLIP's input: (x / 255 - 0.5) / 0.5.

    Equal to `preprocess` of `load_picto_clip` on each drawing, without leaving tensors.

    Args:
        images: [N, 48, 48, 3] uint8, any device.

    Returns:
        [N, 3, 48, 48] float32, contiguous, same device.

    Raises:
        TypeError: not a uint8 tensor. ValueError: another shape.

    Numerics: float32, one rounding for each of the three steps. Not differentiable.

    Memory: the result, and a copy of the bytes.

    Example:
        >>> import torch
        >>> from semobridge_ext import picto_transform
        >>> picto_transform(torch.full((2, 48, 48, 3), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        remedy = "take PictoDataset.images, or use preprocess of load_picto_clip for PIL images"
        raise TypeError(_errors.message("picto_transform", "images", "be a uint8 tensor", images, remedy))
    if images.ndim != 4 or images.shape[1:] != (_SIZE, _SIZE, 3):
        remedy = "use preprocess of load_picto_clip for pictures of other sizes"
        raise ValueError(
            _errors.message("picto_transform", "images", "have shape [N, 48, 48, 3]", images, remedy)
        )
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255).sub_(0.5).div_(0.5)


_LONGEST = 4096  # pixels of a side before an image is put on a square


class _OnWhiteSquare:
    """PIL image of any mode and size to RGB, transparent and missing parts white, square."""

    def __call__(self, image: Any) -> Any:
        from PIL import Image

        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            image = image.convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            image = page
        image = image.convert("RGB")
        if max(image.size) > _LONGEST:  # a strip of few pixels must not become a square of many
            image.thumbnail((_LONGEST, _LONGEST))
        side = max(image.size)
        if image.size != (side, side):
            page = Image.new("RGB", (side, side), "white")
            page.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
            image = page
        return image

    def __repr__(self) -> str:
        return "OnWhiteSquare()"


def _make_preprocess() -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            _OnWhiteSquare(),
            transforms.Resize(_SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def _read_tensors(function: str, names: list[str] | None = None) -> dict[str, Tensor]:
    """The named tensors of the packed weights, or all."""
    from safetensors import SafetensorError, safe_open

    path = _FOLDER / "picto_clip.safetensors"
    try:
        with safe_open(path, framework="pt") as packed:
            return {name: packed.get_tensor(name) for name in names or packed.keys()}
    except (OSError, SafetensorError) as error:
        raise _damaged(function, "hold the packed weights", path, error) from error


def _unpack_state(packed: dict[str, Tensor], words: int) -> dict[str, Tensor]:
    """open_clip's state dict, its own memory; words that training never saw get the mean row."""
    ids = packed.pop("token_embedding.ids").long()
    rows = packed.pop("token_embedding.rows").float() * packed.pop("token_embedding.scales").float()[:, None]
    state = {name: value.to(torch.float32, copy=True) for name, value in packed.items()}
    state["token_embedding.weight"] = rows.mean(0).repeat(words, 1).index_copy_(0, ids, rows)
    return state


def picto_text_projection() -> Tensor:
    """The embedded CLIP's text projection W, [T, D] = [192, 192] float32, without loading the model.

    Example:
        >>> from semobridge_ext.data import picto_text_projection
        >>> picto_text_projection().shape
        torch.Size([192, 192])
    """
    return _read_tensors("picto_text_projection", ["text_projection"])["text_projection"].float()


@plain_device()
def load_picto_clip(
    *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[torch.nn.Module, Any, Any]:
    """Load the embedded CLIP: a standard `open_clip.CLIP`, its preprocessing and its tokenizer.

    48-pixel images, D = T = 192, context 16, the standard 49408-word tokenizer; trained on drawings and
    their names alone (bench/picto). Needs no network and writes nothing.

    Args:
        device: where the model goes.
        dtype: float32, float64, bfloat16 or float16 parameters.

    Returns:
        (model, preprocess, tokenizer): the model in eval mode; a torchvision
        transform from a PIL image of any size and mode to [3, 48, 48] float32; a callable from texts
        to token ids [B, 16] int64.

    Raises:
        TypeError: dtype is no floating-point dtype. ValueError: device is no device of this torch.
        RuntimeError: a damaged file.

    Example:
        >>> from semobridge_ext import load_picto_clip
        >>> model, preprocess, tokenizer = load_picto_clip()
        >>> tuple(model.encode_text(tokenizer(["alarm clock"])).shape)
        (1, 192)
    """
    if dtype not in _errors.FLOAT_DTYPES:
        contract = "be float32, float64, bfloat16 or float16"
        remedy = "pass for example dtype=torch.float32"
        raise TypeError(_errors.message("load_picto_clip", "dtype", contract, repr(dtype), remedy))
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        got = f"{device!r} ({str(error).splitlines()[0]})"
        message = _errors.message(
            "load_picto_clip", "device", "be a device of this torch", got, "pass device='cpu'"
        )
        raise ValueError(message) from error
    from open_clip.model import CLIP

    config = _read_json("load_picto_clip", _FOLDER / "picto_clip.json")["model_cfg"]
    # What a module still draws, by torch.randn, must not move the caller's generator.
    with torch.random.fork_rng(devices=[]), Undrawn():
        model = CLIP(**config)
    model.load_state_dict(_unpack_state(_read_tensors("load_picto_clip"), model.vocab_size), assign=True)
    model.visual.image_mean = model.visual.image_std = (0.5, 0.5, 0.5)
    model = model.to(device=device, dtype=dtype).eval()
    model.preprocess = _make_preprocess()  # what encode_images finds; open_clip's own key has no white page
    return model, model.preprocess, clip_tokenizer(config["text_cfg"]["context_length"])
