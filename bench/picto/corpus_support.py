"""The whole training corpus as one support set for the `icons` evaluation set, beside zero-shot.

`python bench/picto/corpus_support.py --features FILE [--out FILE]`: FILE is what
`bench/picto/evaluate.py --dump-train-features` wrote. One SupportSet of all training drawings, a class
for every distinct name, classifies the test drawings of `icons`, whose styles no training drawing has. A
concept's logit is the sum of its name's class. α and β of the blend are picked on the validation part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.data import picto_transform

BETAS = (1.0, 5.5, 10.0, 20.0, 40.0, 80.0, 160.0)
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


@torch.inference_mode()
def encode(model: torch.nn.Module, images: Tensor) -> Tensor:  # [N, D] unit rows
    parts = []
    for i in range(0, len(images), 512):
        batch = picto_transform(images[i : i + 512])
        parts.append(model.encode_image(batch, normalize=True))
    return torch.cat(parts)


def corpus_features(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Features [S, D] float16, labels [S] and names of the training drawings."""
    with safe_open(path, framework="pt") as file:
        names = json.loads(file.metadata()["names"])
        return file.get_tensor("image_features"), file.get_tensor("labels").long(), names


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


def run(path: Path) -> list[str]:
    model, _, tokenizer = sb.load_picto_clip()
    keys, labels, names = corpus_features(path)
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
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = "\n".join(run(arguments.features)) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
