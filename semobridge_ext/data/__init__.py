"""The embedded small CLIP and its evaluation images (bench/picto says how they were made)."""

from semobridge_ext.data.picto import (
    PictoDataset,
    list_picto,
    load_picto,
    load_picto_clip,
    picto_text_projection,
    picto_transform,
)

__all__ = [
    "PictoDataset",
    "list_picto",
    "load_picto",
    "load_picto_clip",
    "picto_text_projection",
    "picto_transform",
]
