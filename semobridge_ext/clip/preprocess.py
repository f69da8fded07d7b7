"""The preprocessing that belongs to a model: what its makers put an image through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.clip.families import adapter_of

Transform = Callable[[Any], Tensor]  # a PIL image -> [3, H, W]


def preprocess_of(function: str, model: Any) -> Transform:
    """The transform of a model, or ValueError where nothing of it says which it is.

    A module knows its preprocessing where its library wrote it down: open_clip in ``visual.preprocess_cfg``,
    transformers by the name that it was loaded from, OpenAI's clip by its class alone.
    """
    adapter_of(function, model)  # refuses what is no CLIP model
    own = getattr(model, "preprocess", None)
    if callable(own):  # the embedded model brings it along
        return own
    visual = getattr(model, "visual", None)
    if visual is not None:
        config = getattr(visual, "preprocess_cfg", None)
        if config:
            return _open_clip(dict(config))
        size = getattr(visual, "input_resolution", None)
        if isinstance(size, int):
            return _open_clip({"size": size})  # OpenAI's own steps, mean and deviation
    name = getattr(model, "name_or_path", "")
    if name and hasattr(model, "vision_model"):
        return _hugging_face(function, name)
    contract, remedy = "come with a model that does not say its own", "pass the transform of its images"
    raise ValueError(_errors.message(function, "preprocess", contract, None, remedy))


def _open_clip(config: dict[str, Any]) -> Transform:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**config), is_train=False)


class _Processed:
    """A processor of transformers for one image; it can travel to worker processes."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        # Its processors take grey and palettes for other numbers of channels than the model has.
        return self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _hugging_face(function: str, name: str) -> Transform:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # the hub's, json's and its own kinds
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{function}: preprocess must be given where {name} has no image processor at hand, got "
            f"{told}; pass the transform of its images"
        ) from error
    if "pixel_attention_mask" in getattr(processor, "model_input_names", ()):
        raise NotImplementedError(
            f"{function}: preprocess must give one tensor for an image, got {type(processor).__name__}, "
            "which gives masks too; pass what it returns to clip.encode_image"
        )
    return _Processed(processor)
