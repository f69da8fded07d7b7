"""The whole training corpus as one support set for the `icons` evaluation set, beside zero-shot.

`python bench/picto/corpus_support.py --work DIR [--out FILE]`: encodes every training drawing with the
embedded CLIP (kept in DIR/features.npy), makes one SupportSet with a class for every distinct name, and
classifies the test drawings of `icons`, whose styles no training drawing has. A concept's logit is the
sum of its name's class. α and β of the blend are picked on the validation part.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from corpus import read_manifest
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.data import picto_transform

BETAS = (1.0, 5.5, 10.0, 20.0, 40.0, 80.0, 160.0)
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@torch.inference_mode()
def encode(model: torch.nn.Module, images: np.ndarray | Tensor) -> Tensor:  # [N, D] unit rows
    parts = []
    for i in range(0, len(images), 512):
        batch = picto_transform(torch.as_tensor(images[i : i + 512]))
        parts.append(model.encode_image(batch, normalize=True))
    return torch.cat(parts)


def corpus_features(model: torch.nn.Module, work: Path) -> Tensor:
    """[S, D] float16, encoded once and kept."""
    kept = work / "features.npy"
    if not kept.exists():
        images, train = np.load(work / "images.npy", mmap_mode="r"), np.load(work / "train.npy")
        parts = [encode(model, images[rows]).half() for rows in np.array_split(train, len(train) // 8192 + 1)]
        np.save(kept, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(kept))


def median_ms(function: Callable[[], Tensor], rounds: int = 9) -> float:
    function()
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took)


def concept_columns(names: list[str], concepts: list[str]) -> Tensor:
    """[C] the support class of each concept, -1 where no training drawing has its name."""
    index = {name: i for i, name in enumerate(names)}
    return torch.tensor([index.get(concept, -1) for concept in concepts])


def concept_logits(support: sb.SupportSet, queries: Tensor, columns: Tensor, beta: float) -> Tensor:
    sums = support.logits(queries, beta=beta)
    return torch.where(columns >= 0, sums[:, columns.clamp(min=0)], torch.zeros(()))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def run(work: Path) -> list[str]:
    model, _, tokenizer = sb.load_picto_clip()
    rows = read_manifest(work)
    texts = [rows[i]["text"] for i in np.load(work / "train.npy")]
    names = sorted(set(texts))
    index = {name: i for i, name in enumerate(names)}
    keys, labels = corpus_features(model, work), torch.tensor([index[t] for t in texts])
    support = sb.SupportSet(keys, labels, len(names))

    icons = sb.load_picto("icons")
    features = encode(model, icons.images)
    with torch.inference_mode():
        text = model.encode_text(tokenizer(icons.texts()), normalize=True)
    scale, columns = model.logit_scale.exp().item(), concept_columns(names, icons.class_names)
    val, test, y_val, y_test = (
        features[icons.val], features[icons.test], icons.labels[icons.val], icons.labels[icons.test],
    )  # fmt: skip

    def zero_shot(q: Tensor) -> Tensor:
        return scale * q @ text.T

    sums = {beta: concept_logits(support, val, columns, beta) for beta in BETAS}
    alone = max(BETAS, key=lambda b: accuracy(sums[b], y_val))
    pairs = [(a, b) for a in ALPHAS for b in BETAS]
    alpha, beta = max(pairs, key=lambda p: accuracy(zero_shot(val) + p[0] * sums[p[1]], y_val))

    def blend(q: Tensor) -> Tensor:
        return zero_shot(q) + alpha * concept_logits(support, q, columns, beta)

    methods = {
        "zero-shot": zero_shot,
        f"support set alone, β={alone:g}": lambda q: concept_logits(support, q, columns, alone),
        f"blend, α={alpha:g}, β={beta:g}": blend,
    }
    found = int((columns >= 0).sum())
    lines = [
        f"{len(support)} training drawings, {len(names)} names, float16 keys of width {support.width}; "
        f"{len(test)} test drawings of {icons.num_classes} concepts, {found} of them among the names.",
        "",
        "| logits | top-1 | ms for all | µs a drawing |",
        "|---|---:|---:|---:|",
    ]
    for name, method in methods.items():
        took = median_ms(lambda method=method: method(test))
        lines.append(
            f"| {name} | {accuracy(method(test), y_test):.1%} | {took:.1f} | {1e3 * took / len(test):.0f} |"
        )
    one = median_ms(lambda: blend(test[:1]), 101)
    return [*lines, "", f"One drawing at a time, blend: {one:.2f} ms."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = "\n".join(run(arguments.work)) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
