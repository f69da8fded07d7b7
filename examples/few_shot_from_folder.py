"""A few-shot classifier from a folder of images, one sub-folder a class.

    python examples/few_shot_from_folder.py photos/ --shots 4 --model ViT-B-32 --pretrained openai

Of every class, the first `--shots` images (in a seeded order) teach, as many again tune the blend, the rest
is scored. Without a folder, drawings of the embedded set `logos` are written to one first, and without a
model the embedded CLIP encodes them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import open_clip
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

import semobridge_ext as sb

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def write_drawings(folder: Path) -> None:
    """The embedded logos as PNG files."""
    logos = sb.load_picto("logos")
    for i, (pixels, label) in enumerate(zip(logos.images, logos.labels.tolist(), strict=True)):
        place = folder / logos.class_names[label].replace("/", " ")
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(place / f"{i}.png")


def read_folder(folder: Path, model: torch.nn.Module, preprocess) -> tuple[Tensor, list[str]]:
    """Raw features [N, D] and class names of all images that can be read."""
    features, names, batch = [], [], []

    def flush() -> None:
        if batch:
            with torch.inference_mode():
                features.append(model.encode_image(torch.stack(batch)).clone())
            batch.clear()

    for path in sorted(p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES):
        try:
            batch.append(preprocess(Image.open(path).convert("RGB")))
        except (UnidentifiedImageError, OSError) as error:
            print(f"left out: {path} ({error})")
            continue
        names.append(path.parent.name)
        if len(batch) == 128:
            flush()
    flush()
    if not features:
        raise SystemExit(f"no image in a sub-folder of {folder}")
    return torch.cat(features), names


def split(names: list[str], shots: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Rows to learn from, to tune on and to score, class by class."""
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    of_class: dict[str, list[int]] = {}
    for row in order:
        of_class.setdefault(names[row], []).append(row)
    train, tune, test = [], [], []
    for rows in of_class.values():
        train += rows[:shots]
        tune += rows[shots : 2 * shots]
        test += rows[2 * shots :]
    return train, tune, test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="an open_clip model; default: the embedded one")
    parser.add_argument("--pretrained", help="tag or checkpoint file of --model")
    args = parser.parse_args()
    if args.model is None:
        model, preprocess, tokenizer = sb.load_picto_clip()
    else:
        model, _, preprocess = open_clip.create_model_and_transforms(args.model, pretrained=args.pretrained)
        tokenizer = open_clip.get_tokenizer(args.model)
    model.eval()

    with tempfile.TemporaryDirectory() as scratch:
        if args.folder is None:
            write_drawings(Path(scratch))
        features, names = read_folder(args.folder or Path(scratch), model, preprocess)
    train, tune, test = split(names, args.shots, args.seed)
    if not tune or not test:
        raise SystemExit(f"no class has more than {args.shots} images to tune on and to score; lower --shots")
    classes = sorted({names[i] for i in train})

    def part(rows: list[int]) -> tuple[Tensor, list[str]]:
        return features[rows], [names[i] for i in rows]

    text = sb.class_text_features(model, classes, ["a photo of {}", "{}"], tokenizer=tokenizer)
    bridge = sb.Bridge.from_clip(model, text_length=text.length)
    estimators = {
        "zero-shot": sb.ZeroShot(text.projected, class_names=classes),
        "nearest class mean": sb.NearestClassMean(),
        "SeMoBridge": sb.SeMoBridgeClassifier(bridge, text.projected, class_names=classes),
    }
    sizes = f"{len(train)} images to learn from, {len(tune)} to tune, {len(test)} to score"
    print(f"{len(classes)} classes; {sizes}")
    for title, estimator in estimators.items():
        estimator.fit(*part(train))
        if hasattr(estimator, "tune"):
            estimator.tune(*part(tune), n_trials=300, sampler="random", seed=args.seed)
        print(f"{title:20} {estimator.score(*part(test)):6.1%}")


if __name__ == "__main__":
    main()
