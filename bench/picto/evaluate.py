"""Measure the embedded CLIP: zero-shot accuracy on drawing styles that it never saw.

    python bench/picto/evaluate.py                               # a Markdown table
    python bench/picto/evaluate.py --work DIR --record           # and bench/results/picto_training.json
    python bench/picto/evaluate.py --work DIR --dump-train-features features.safetensors

Reads only what the package embeds, as the package loads it; `--work` adds what exists in the work
folder alone: the training curve, and the features of all training drawings (image_features [N, D]
float16, unit rows; labels and styles [N] int32, indices into the `names` and `styles` lists that the
file's metadata hold as JSON).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from semobridge_ext.data import list_picto, load_picto, load_picto_clip, picto_transform

RESULTS = Path(__file__).resolve().parents[1] / "results" / "picto_training.json"
TEMPLATES = {
    "name": ("{}",),
    "drawing": ("a drawing of {}",),
    "photo": ("a photo of {}",),
    "mean": ("{}", "a photo of {}", "an icon of {}", "a drawing of {}"),
}


@torch.inference_mode()
def encode_images(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unit features [N, D] of uint8 drawings [N, 48, 48, 3]."""
    from tqdm import tqdm

    chunks = tqdm(images.split(256), unit="batch", disable=len(images) < 10_000)
    return torch.cat([model.encode_image(picto_transform(chunk), normalize=True) for chunk in chunks])


@torch.inference_mode()
def class_features(model: torch.nn.Module, tokenizer, names: list[str], templates: tuple) -> torch.Tensor:
    """Unit class features [C, D], the mean over templates."""
    parts = [model.encode_text(tokenizer([t.format(n) for n in names]), normalize=True) for t in templates]
    return F.normalize(torch.stack(parts).mean(0), dim=1)


def measure(name: str, model: torch.nn.Module, tokenizer) -> dict:
    """Zero-shot accuracy of one set, as fractions: on the test part per template, and on all drawings."""
    data = load_picto(name)
    features = encode_images(model, data.images)
    result = {
        "classes": data.num_classes,
        "styles": len(set(data.styles)),
        "drawings": {
            "train": int(data.train.sum()),
            "val": int(data.val.sum()),
            "test": int(data.test.sum()),
        },
        "chance": round(1 / data.num_classes, 4),
    }
    for label, templates in TEMPLATES.items():
        scores = features @ class_features(model, tokenizer, data.class_names, templates).T
        top = scores.topk(5, dim=1).indices == data.labels[:, None]
        result[label] = round(float(top[data.test, 0].double().mean()), 4)
        if label == "name":
            result["name_top5"] = round(float(top[data.test].any(1).double().mean()), 4)
            result["name_all_parts"] = round(float(top[:, 0].double().mean()), 4)
            styles = np.array(data.styles)
            worst = {s: float(top[torch.from_numpy(styles == s), 0].double().mean()) for s in set(styles)}
            result["by_style"] = {s: round(v, 4) for s, v in sorted(worst.items(), key=lambda kv: -kv[1])}
    return result


def table(results: dict) -> str:
    """Markdown, one row a set."""
    columns = ("set", "classes", "styles", "test drawings", "chance", "`{}`", "top 5")
    columns += ("`a drawing of {}`", "`a photo of {}`", "mean of 4")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, r in results.items():
        percent = [f"{100 * r[k]:.1f} %" for k in ("chance", "name", "name_top5", "drawing", "photo", "mean")]
        cells = [name, str(r["classes"]), str(r["styles"]), str(r["drawings"]["test"]), *percent]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_curve(work: Path) -> list[dict]:
    """The training log; where a continued run repeated steps, the later record counts."""
    records = [json.loads(line) for line in (work / "training.jsonl").open()]
    return [record for _, record in sorted({r["step"]: r for r in records}.items())]


def dump_train_features(work: Path, path: Path, model: torch.nn.Module) -> None:
    """Write the features of every drawing of the training corpus."""
    from corpus import read_manifest
    from safetensors.torch import save_file

    manifest, rows = read_manifest(work), np.load(work / "train.npy")
    images = torch.from_numpy(np.load(work / "images.npy", mmap_mode="r")[rows])
    columns = {}
    lists = {}
    for column, field in (("labels", "text"), ("styles", "set")):
        values = [manifest[row][field] for row in rows]
        names = sorted(set(values))
        index = {value: i for i, value in enumerate(names)}
        columns[column] = torch.tensor([index[value] for value in values], dtype=torch.int32)
        lists["names" if column == "labels" else column] = json.dumps(names)
    save_file({"image_features": encode_images(model, images).half(), **columns}, path, metadata=lists)
    print(f"{len(rows)} features in {path}")


def main() -> None:
    """Print the table; record and dump where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="the work folder of fetch.py")
    parser.add_argument("--record", action="store_true", help="write bench/results/picto_training.json")
    parser.add_argument("--dump-train-features", type=Path, metavar="PATH")
    args = parser.parse_args()
    if (args.record or args.dump_train_features) and not args.work:
        parser.error("--record and --dump-train-features need --work")
    model, _, tokenizer = load_picto_clip()
    results = {name: measure(name, model, tokenizer) for name in list_picto()}
    print(table(results))
    if args.record:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        record = {"zero_shot": results, "curve": read_curve(args.work)}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    if args.dump_train_features:
        dump_train_features(args.work, args.dump_train_features, model)


if __name__ == "__main__":
    main()
