"""Pack the trained weights and the evaluation sets into semobridge_ext/data.

`python bench/picto/pack.py --work DIR` writes
- picto_clip.safetensors: the weights in float16, the used word rows in int8 with one scale a row;
- picto_clip.json: the model and preprocessing in open_clip's config form, and the training figures;
- picto_sets.json and picto_<set>_{gray,colour}.png: the evaluation sets; each drawing is a 48x48 tile,
  16 grays or one palette of 256 colours a set. What is packed is what every figure is measured on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from corpus import read_manifest
from PIL import Image
from safetensors.torch import save_file

DATA = Path(__file__).resolve().parents[2] / "semobridge_ext" / "data"
COLUMNS = 64
DESCRIPTIONS = {
    "icons": "Interface and object icons: the concept drawn. Many drawing styles, mostly one colour.",
    "emoji": "Emoji by Unicode subcategory, two drawing styles; train, val and test hold different emoji.",
    "flags": "Flags of countries, four drawing styles, one drawing a style.",
    "logos": "Logos of brands and tools, drawn by several icon sets.",
    "arrows": "Arrows, chevrons and carets by direction and frame: a fine-grained family.",
}


def pack_weights(work: Path) -> dict:
    """Write the safetensors file; returns the training figures."""
    state = torch.load(work / "checkpoint.pt", weights_only=False)
    weights = {k: v.half().contiguous() for k, v in state["model"].items()}
    rows = state["model"]["token_embedding.weight"].float()
    del weights["token_embedding.weight"]
    scales = (rows.abs().amax(1) / 127).clamp(min=1e-8).half()
    weights["token_embedding.ids"] = state["used"].int()
    weights["token_embedding.rows"] = (rows / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    weights["token_embedding.scales"] = scales
    # float16 cannot hold the scale's last digits; keep it exact.
    weights["logit_scale"] = state["model"]["logit_scale"].float()
    save_file(weights, DATA / "picto_clip.safetensors", metadata={"format": "pt", "license": "Apache-2.0"})
    return {
        "steps": state["step"],
        "pairs_seen": state["seen"],
        "seconds": round(state["seconds"]),
        "words": len(rows),
        "drawings": len(np.load(work / "train.npy")),
    }


def sheet(tiles: np.ndarray) -> np.ndarray:
    """[N, 48, 48, C] tiles to one picture of COLUMNS tiles a line."""
    lines = -(-len(tiles) // COLUMNS)
    padded = np.concatenate([tiles, np.full((lines * COLUMNS - len(tiles), *tiles.shape[1:]), 255, np.uint8)])
    grid = padded.reshape(lines, COLUMNS, *tiles.shape[1:])
    return grid.transpose(0, 2, 1, 3, 4).reshape(lines * tiles.shape[1], COLUMNS * tiles.shape[2], -1)


def pack_images(name: str, images: np.ndarray) -> str:
    """Write the sheets of one set; returns one letter a drawing, g or c, for the sheet that holds it."""
    spread = images.max(axis=3).astype(int) - images.min(axis=3)
    colour = spread.reshape(len(images), -1).max(axis=1) > 12
    if (~colour).any():
        gray = sheet(images[~colour].mean(axis=3, keepdims=True).round().astype(np.uint8))[:, :, 0]
        levels = Image.fromarray(np.round(gray / 17).astype(np.uint8), mode="P")
        levels.putpalette([v for level in range(16) for v in (level * 17,) * 3])
        levels.save(DATA / f"picto_{name}_gray.png", optimize=True, bits=4)
    if colour.any():
        picture = Image.fromarray(sheet(images[colour]))
        picture.quantize(256, dither=Image.Dither.NONE).save(DATA / f"picto_{name}_colour.png", optimize=True)
    return "".join("c" if c else "g" for c in colour)


def main() -> None:
    """Pack everything and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only-sets", action="store_true", help="leave the weights as they are")
    args = parser.parse_args()
    manifest, images = read_manifest(args.work), np.load(args.work / "images.npy", mmap_mode="r")
    described = {}
    for name, data in json.loads((args.work / "evalsets.json").read_text()).items():
        rows = [row for row, _, _ in data["entries"]]
        styles = sorted({manifest[row]["set"] for row in rows})
        described[name] = {
            "description": DESCRIPTIONS[name],
            "class_names": data["class_names"],
            "style_names": styles,
            "labels": [label for _, label, _ in data["entries"]],
            "styles": [styles.index(manifest[row]["set"]) for row in rows],
            "parts": "".join({"train": "t", "val": "v", "test": "e"}[part] for *_, part in data["entries"]),
            "sheets": pack_images(name, images[rows]),
        }
    (DATA / "picto_sets.json").write_text(json.dumps(described, separators=(",", ":")) + "\n")
    if not args.only_sets:
        config = json.loads((Path(__file__).parent / "model_config.json").read_text())
        described = {
            "model_cfg": config,
            "preprocess_cfg": {
                "size": [48, 48],
                "mode": "RGB",
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
                "interpolation": "bicubic",
                "resize_mode": "longest",
                "fill_color": 255,
            },
            "training": pack_weights(args.work),
        }
        (DATA / "picto_clip.json").write_text(json.dumps(described, indent=2) + "\n")
    total = 0
    for path in sorted(DATA.glob("picto_*")):
        total += path.stat().st_size
        print(f"{path.name:28} {path.stat().st_size / 1e6:6.2f} MB")
    print(f"{'total':28} {total / 1e6:6.2f} MB")


if __name__ == "__main__":
    main()
