"""A step of prompt learning against plain programs, random ViT-B/32 text tower, 64 classes of real names.

    python bench/studies/prompt_speed.py              # ratios in one run, two threads
    python bench/studies/prompt_speed.py --classes 1000 --contexts 4 --own    # ours alone, with its memory

Text features of all classes and the gradient of the context. `full` is autograd over 77 positions of every
class; `cut` ends at the longest prompt's end token; `grouped` runs each length of prompts by itself; `shared`
runs start and context once, by autograd in plain PyTorch, keys and values of the prefix beside those of each
class, and only end rows in the last layer. Results are compared with `full` first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.prompts.prompt_features import PromptEncoder

_SETS = Path(sb.__file__).parent / "data" / "picto_sets.json"
Result = tuple[Tensor, Tensor]  # features [C, D], the context's gradient


def real_names(count: int) -> list[str]:
    """Of the embedded sets, every one of as many words as make 4.7 rows a class with full stop and end."""
    sets = json.loads(_SETS.read_text())
    found = list(dict.fromkeys(name for data in sets.values() for name in data["class_names"]))
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    rows = {name: len(tokenizer.encode(name)) + 2 for name in found}
    while len(found) < count:  # the sets have fewer than a thousand
        found.append(f"{found[len(found) % 97]} {found[len(found) % 89]}")
        rows[found[-1]] = len(tokenizer.encode(found[-1])) + 2
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    chosen: list[str] = []
    total = 0
    for name in (found[i] for i in order):
        # A name is taken where it brings the mean nearer.
        if len(chosen) < count and (total <= 4.7 * len(chosen)) == (rows[name] >= 4.7):
            chosen.append(name)
            total += rows[name]
    return [*chosen, *(n for n in found if n not in chosen)][:count]


class Plain:
    """open_clip's modules under autograd, over rows that are put together by hand."""

    def __init__(self, model: Any, ids: Tensor, ends: Tensor, n: int, specific: bool) -> None:
        self.model, self.ids, self.ends, self.n, self.specific = model, ids, ends, n, specific
        with torch.no_grad():
            self.rows = model.token_embedding(ids)

    def embedded(self, context: Tensor, which: Tensor, length: int) -> Tensor:
        rows = self.rows[which]
        own = context.view(-1, self.n, context.shape[1])
        own = own[which] if self.specific else own.expand(len(which), -1, -1)
        x = torch.cat([rows[:, :1], own, rows[:, 1 + self.n :]], dim=1)[:, :length]
        return x + self.model.positional_embedding[:length]

    def encode(self, context: Tensor, which: Tensor, length: int) -> Tensor:
        x = self.embedded(context, which, length)
        x = self.model.transformer(x, attn_mask=self.model.attn_mask[:length, :length])
        x = x[torch.arange(len(which)), self.ends[which]]
        return self.model.ln_final(x) @ self.model.text_projection

    def full(self, context: Tensor) -> Tensor:
        return self.encode(context, torch.arange(len(self.ids)), self.ids.shape[1])

    def cut(self, context: Tensor) -> Tensor:
        return self.encode(context, torch.arange(len(self.ids)), int(self.ends.max()) + 1)

    def grouped(self, context: Tensor) -> Tensor:
        parts, order = [], []
        for end in self.ends.unique().tolist():
            which = (self.ends == end).nonzero().flatten()
            parts.append(self.encode(context, which, end + 1))
            order.append(which)
        return torch.cat(parts)[torch.argsort(torch.cat(order))]

    def shared(self, context: Tensor) -> Tensor:
        """One prefix for all classes; classes grouped by length."""
        heads, first = self.model.transformer.resblocks[0].attn.num_heads, 1 + self.n
        groups = [(self.ends == e).nonzero().flatten() for e in self.ends.unique().tolist()]
        prefix = self.embedded(context, torch.zeros(1, dtype=torch.int64), first)
        own = [self.embedded(context, g, int(self.ends[g[0]]) + 1)[:, first:] for g in groups]

        def split(rows: Tensor) -> Tensor:  # [c, l, T] -> [c, heads, l, d]
            return rows.unflatten(2, (heads, -1)).transpose(1, 2)

        def joined(rows: Tensor, out: Tensor, block: Any) -> Tensor:
            rows = rows + block.attn.out_proj(out.transpose(1, 2).flatten(2))
            return rows + block.mlp(block.ln_2(rows))

        blocks = self.model.transformer.resblocks
        for block in blocks:
            last = block is blocks[-1]
            weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
            q, k, v = (split(p) for p in F.linear(block.ln_1(prefix), weight, bias).chunk(3, dim=2))
            for i, rows in enumerate(own):
                parts = F.linear(block.ln_1(rows), weight, bias).chunk(3, dim=2)
                cq, ck, cv = (split(p) for p in parts)
                keys, values = (torch.cat([p.expand(len(rows), -1, -1, -1), c], dim=2)
                                for p, c in ((k, ck), (v, cv)))  # fmt: skip
                length = rows.shape[1]
                mask = torch.ones(length, first + length, dtype=torch.bool).tril(first)
                if last:
                    cq, mask, rows = cq[:, :, -1:], mask[-1:], rows[:, -1:]
                own[i] = joined(rows, F.scaled_dot_product_attention(cq, keys, values, mask), block)
            if not last:
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                prefix = joined(prefix, out, block)
        ends = torch.cat([rows[:, -1] for rows in own])[torch.argsort(torch.cat(groups))]
        return self.model.ln_final(ends) @ self.model.text_projection


def timed(step: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    found = step()
    return time.perf_counter() - start, found


def measure(model: Any, names: list[str], n: int, specific: bool, args: argparse.Namespace) -> None:
    encoder = PromptEncoder("prompt_speed", model, open_clip.get_tokenizer("ViT-B-32"))
    ids, ends = encoder.ids(names, encoder.words(names), n, "end", specific)
    count = n * (len(names) if specific else 1)
    context = 0.02 * torch.randn(count, encoder.width, generator=torch.Generator().manual_seed(1))
    target = torch.randn(len(names), encoder.features, generator=torch.Generator().manual_seed(2))
    prompts = encoder.prompts(ids, ends, None)

    def ours() -> Result:
        with torch.no_grad():
            return prompts.forward(context), prompts.backward(target, context)

    ours()
    mean = float((ends - n).float().mean())
    told = f"{len(names)} classes, {n} contexts{', of each class' if specific else ''}"
    print(f"{told}: {mean:.1f} rows a name, {prompts.rows} rows on the tree", flush=True)
    if args.own:
        seconds = [timed(ours)[0] for _ in range(3)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        bytes_ = prompts.rows * encoder.tower.bytes_per_row / 2**20
        print(f"    ours {1e3 * min(seconds):.0f} ms, {bytes_:.0f} MiB for the way back, "
              f"{peak:.2f} GiB at the process's peak")  # fmt: skip
        return
    whole = F.pad(ids.clamp(max=encoder.tower.words - 1), (0, 77 - ids.shape[1]))
    plain = Plain(model, whole, ends, n, specific)

    def by_autograd(features: Callable[[Tensor], Tensor]) -> Result:
        leaf = context.clone().requires_grad_()
        found = features(leaf)
        return found.detach(), torch.autograd.grad(found, leaf, target)[0]

    programs: dict[str, Callable[[], Result]] = {"full": lambda: by_autograd(plain.full)}
    programs |= {"cut": lambda: by_autograd(plain.cut), "grouped": lambda: by_autograd(plain.grouped)}
    if not specific:
        programs["shared"] = lambda: by_autograd(plain.shared)
    programs["ours"] = ours
    want = programs["full"]()
    for name, step in programs.items():
        for got, oracle in zip(step(), want, strict=True):
            error = float((got - oracle).abs().max() / oracle.abs().max())
            assert error < 5e-5, f"{name} is apart by {error:.1e}"
    seconds = {name: [] for name in programs}
    for turn in range(args.turns):  # in turns: a slow moment of the machine meets all
        for name, step in programs.items():
            for _ in range(1 if name == "full" else 3):
                if name != "full" or turn < 2:
                    seconds[name].append(timed(step)[0])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        ratio = medians["full"] / median
        best = 1e3 * min(seconds[name])
        print(f"    {name:<8} {1e3 * median:7.0f} ms   {ratio:5.1f} times   (best {best:.0f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs="*", default=[16, 4])
    parser.add_argument("--specific", action="store_true", help="also a context of each class")
    parser.add_argument("--own", action="store_true", help="ours alone, with its memory")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval().requires_grad_(False)
    print(f"threads {args.threads}, torch {torch.__version__}, {sb.build_info()['isa']}")
    names = real_names(args.classes)
    for n in args.contexts:
        measure(model, names, n, False, args)
    if args.specific:
        measure(model, names, min(args.contexts), True, args)


if __name__ == "__main__":
    main()
