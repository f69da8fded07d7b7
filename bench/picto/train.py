"""Train the embedded CLIP: contrastive loss between drawings and their names, nothing else.

`python bench/picto/train.py --work DIR --steps N` keeps DIR/checkpoint.pt (every few minutes; a killed
run continues from it) and DIR/training.jsonl (loss and zero-shot accuracy on held-out styles).

What makes it quick on two cores, none of it changing the model that comes out:
- patches are dropped at random (FLIP, Li et al. 2023) until the last fifth of the run;
- texts are cut to the longest of their batch, exact because the tower is causal;
- only the rows of used words exist while training; linear layers in bfloat16 (towers.py);
- Muon for the block matrices (muon.py);
- augmentation starts weak and grows; the rate falls to zero over the last third.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from augment import augment
from corpus import Corpus, concept_rows
from muon import MuonAdamW
from torch import Tensor
from towers import encode_image, encode_text

DECAY_SHARE = 0.35


def build_model(words: int) -> torch.nn.Module:
    """open_clip CLIP of model_config.json over a compact vocabulary."""
    from open_clip.model import CLIP

    config = json.loads((Path(__file__).parent / "model_config.json").read_text())
    config["text_cfg"]["vocab_size"] = words
    return CLIP(**config)


def to_input(images: Tensor) -> Tensor:
    """Normalise 0..1 to the model's input, mean and standard deviation 0.5."""
    return (images - 0.5) / 0.5


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, keys: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy; pairs of equal name are left out of each other's negatives."""
    logits = scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    twins = (keys[:, None] == keys[None]) & ~torch.eye(len(keys), dtype=torch.bool)
    logits = logits.masked_fill(twins, float("-inf"))
    target = torch.arange(len(keys))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def schedule(progress: float, lr: float) -> dict:
    """Rate, batch, kept patches (of 36) and augmentation at a share 0..1 of the run."""
    decay = min(1.0, (1 - progress) / DECAY_SHARE)
    return {
        "lr": lr * decay,
        "batch": 256,
        "patches": 18 if progress < 0.8 else 27 if progress < 0.93 else 36,
        "strength": min(1.0, max(0.0, (progress - 0.03) / 0.3)),
    }


class Check:
    """Zero-shot accuracy on a fixed 4000 drawings in held-out styles; watched, never selected on."""

    def __init__(self, work: Path, corpus: Corpus):
        rows, labels, names = concept_rows(work)
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:4000])
        self.images = torch.from_numpy(np.load(work / "images.npy", mmap_mode="r")[rows[chosen]])
        self.labels, self.tokens = torch.from_numpy(labels[chosen]), corpus.compact(names)

    @torch.no_grad()
    def __call__(self, model: torch.nn.Module) -> float:
        model.eval()
        text = F.normalize(encode_text(model, self.tokens), dim=1)
        hits = 0
        for images, labels in zip(self.images.split(500), self.labels.split(500), strict=True):
            image = model.encode_image(to_input(images.permute(0, 3, 1, 2).float() / 255))
            hits += int(((image @ text.T).argmax(1) == labels).sum())
        model.train()
        return hits / len(self.labels)


def seconds_until(clock: str) -> float:
    """Seconds from now to HH:MM local time, at least a hundredth."""
    hour, minute = map(int, clock.split(":"))
    now = time.localtime()
    return max(0.01, (hour - now.tm_hour) * 3600 + (minute - now.tm_min) * 60 - now.tm_sec)


def save(path: Path, state: dict) -> None:
    """Write a checkpoint beside its final name, then rename."""
    torch.save(state, str(path) + ".part")
    os.replace(str(path) + ".part", path)


def main() -> None:
    """Train, or continue training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--run", default="", help="suffix of the checkpoint and log, for trials")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--until", help="finish at this local time, HH:MM, whatever the number of steps")
    parser.add_argument("--stop", type=int, help="stop after this step, without decay, for trials")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--muon-lr", type=float, default=2e-3, help="0 trains all with AdamW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    checkpoint, log_path = args.work / f"checkpoint{args.run}.pt", args.work / f"training{args.run}.jsonl"
    corpus = Corpus(args.work)
    check = Check(args.work, corpus)
    model = build_model(len(corpus.used)).train()
    optimizer = MuonAdamW(model, muon=args.muon_lr > 0)
    step, seen, seconds, progress, order = 0, 0, 0.0, 0.0, np.empty(0, dtype=np.int64)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, seconds, order = (state[k] for k in ("step", "seen", "seconds", "order"))
        progress = state.get("progress", step / args.steps)
        torch.set_rng_state(state["rng"])
    shuffle = np.random.default_rng([args.seed, step])
    print(
        f"{len(corpus.images)} drawings, {len(corpus.names)} texts, {len(corpus.used)} words, at step {step}"
    )
    losses, saved_at = [], time.perf_counter()
    last = False
    while not last:
        began = time.perf_counter()
        plan = schedule(progress, 1.0)
        warm = min(1.0, (step + 1) / 150) * plan["lr"]
        if len(order) < plan["batch"]:
            order = shuffle.permutation(len(corpus.images))
        rows, order = np.sort(order[: plan["batch"]]), order[plan["batch"] :]
        tokens, keys = corpus.texts(rows)
        images = augment(torch.from_numpy(corpus.images[rows]), plan["strength"])
        image_features = encode_image(model, to_input(images), plan["patches"])
        loss = clip_loss(image_features, encode_text(model, tokens), model.logit_scale, keys)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(args.lr * warm, args.muon_lr * warm)
        model.logit_scale.data.clamp_(0, np.log(100))
        step, seen = step + 1, seen + len(rows)
        losses.append(loss.item())
        taken = time.perf_counter() - began
        # A pause of the process from outside is not training time.
        seconds += min(taken, 10.0)
        share = min(1.0, taken / seconds_until(args.until)) * (1 - progress) if args.until else 1 / args.steps
        progress += share
        last = step == args.stop or progress > 0.9995
        if step % 50 == 0 or last:
            record = {
                "step": step,
                "progress": round(progress, 4),
                "seen": seen,
                "seconds": round(seconds),
                "loss": round(float(np.mean(losses)), 4),
                "scale": round(model.logit_scale.exp().item(), 2),
                **plan,
            }
            losses = []
            if step % 400 == 0 or last:
                record["zero_shot"] = round(check(model), 4)
            with open(log_path, "a") as sink:
                sink.write(json.dumps(record) + "\n")
            print(record, flush=True)
        if last or time.perf_counter() - saved_at > 180:
            saved_at = time.perf_counter()
            counters = {"step": step, "seen": seen, "seconds": seconds, "progress": progress, "order": order}
            weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "used": corpus.used}
            save(checkpoint, {**weights, **counters, "rng": torch.get_rng_state()})


if __name__ == "__main__":
    main()
