"""Cold and learned starts of OTI by step: the tables and the picture of docs/guides/learned_start.md.

    python bench/studies/learned_start.py                          # every embedded set; R = 1 and 4
    python bench/studies/learned_start.py --sets arrows --tokens 1 # this one again
    python bench/studies/learned_start.py --render                 # tables and picture of what was measured

Some drawings of a set are inverted, from N(0, 0.02²) and from two maps that were fitted to other drawings
of the set: the default one, and a small one that was trained half as long. Loss: mean of 1 − cos.
mAP: each OTI feature is a query among the native image features of the whole set, its own drawing left out;
relevant is what has its class. "all" is the five sets as one. Intervals: 95 %, 2000 bootstrap resamples of
the queries, the same for both starts, so that differences are paired.

Costs are processor time: of a step of one sample, from the cold run, and of the whole of a fit, pilots,
regressions and training included. From these and the steps that are needed follows the share of a cold run's
time for 10 000 images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.diagnostics.resampling import draws

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "learned_start.json"
FIGURE = ROOT / "docs" / "guides" / "learned_start.png"
SETS = ("icons", "emoji", "logos", "flags", "arrows")
COLD = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 90, 120, 150)
WARM = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40)
RESAMPLES, IMAGES, NEAR = 2000, 10_000, 0.003
MAPS: dict[str, dict[str, Any]] = {"default": {}, "small": {"hidden": 256, "train_steps": 500}}


def features_of(name: str, model: Any) -> tuple[Tensor, Tensor]:  # [N, D], [N]
    if name == "all":
        parts = [features_of(one, model) for one in SETS]
        shift, labels = 0, []
        for _, own in parts:
            labels.append(own + shift)
            shift += int(own.max()) + 1
        return torch.cat([f for f, _ in parts]), torch.cat(labels)
    data = sb.load_picto(name)
    with torch.inference_mode():
        chunks = [model.encode_image(sb.picto_transform(c)) for c in data.images.split(256)]
    return torch.cat(chunks).clone(), data.labels


def average_precision(
    queries: Tensor,  # [Q, D] unit rows
    gallery: Tensor,  # [N, D] unit rows
    labels: Tensor,  # [N]
    places: Tensor,  # [Q] each query's own place, left out
) -> Tensor:  # [Q], NaN where nothing is relevant
    found = []
    for part, own in zip(queries.split(64), places.split(64), strict=True):
        scores = part @ gallery.T
        scores.scatter_(1, own[:, None], -float("inf"))
        order = scores.argsort(dim=1, descending=True)[:, :-1]
        hits = (labels[order] == labels[own][:, None]).double()
        ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        found.append((hits * hits.cumsum(1) / ranks).sum(1) / hits.sum(1))
    return torch.cat(found)


def interval(values: Tensor) -> list[float]:  # [Q] -> mean, low, high
    """Mean of the values that exist, and how far it could have come out otherwise."""
    known = ~torch.isnan(values)
    part = values[known].double()
    means = torch.cat([w @ part / w.sum(1) for w in draws(len(part), RESAMPLES, 0)])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [float(part.mean()), low, high]


def measure(name: str, count: int, queries: int) -> dict[str, Any]:
    model, _, tokenizer = sb.load_picto_clip()
    features, labels = features_of(name, model)
    gallery = normalize(features, dim=1)
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    places = order[: min(queries, len(features) // 2)]
    rest = order[len(places) :]
    f = features[places]

    def scores(rows: Tensor) -> Tensor:
        return average_precision(normalize(rows, dim=1), gallery, labels, places)

    def run(steps: tuple[int, ...], **options: Any) -> tuple[dict[str, Any], dict[int, Tensor]]:
        began = time.process_time()
        inv = sb.oti(
            model, f, tokenizer=tokenizer, num_tokens=count, steps=steps[-1], record_steps=steps, **options
        )
        seconds = time.process_time() - began
        losses = {s: 1 - (rows * gallery[places]).sum(1) for s, rows in inv.recorded.items()}
        found = {
            "loss": {s: interval(v) for s, v in losses.items()}, "losses": inv.losses.tolist(),
            "seconds": seconds / steps[-1] / len(f), "mAP": {}, "difference": {},
        }  # fmt: skip
        return found, {s: scores(rows) for s, rows in inv.recorded.items()}

    start = {"generator": torch.Generator().manual_seed(1)}
    cold, cold_ap = run(COLD, **start)
    cold["mAP"] = {s: interval(v) for s, v in cold_ap.items()}
    result = {
        "set": name, "images": len(features), "queries": len(places), "tokens": count, "cold": cold,
        "native": interval(scores(gallery[places])), "maps": {},
    }  # fmt: skip
    for title, options in MAPS.items():
        began = time.process_time()
        phi = sb.InversionMap.fit(
            model, features[rest], tokenizer=tokenizer, num_tokens=count, **options,
            generator=torch.Generator().manual_seed(2),
        )  # fmt: skip
        seconds = time.process_time() - began
        warm, ap = run(WARM, init=phi)
        warm["mAP"] = {s: interval(v) for s, v in ap.items()}
        warm["difference"] = {s: interval(v - cold_ap[COLD[-1]]) for s, v in ap.items()}
        warm |= {"rows": len(rest), "fit_seconds": seconds}
        warm |= {"ridge": phi.ridge, "held_out_loss": phi.held_out_loss}
        warm |= needed(warm, cold)
        result["maps"][title] = warm
    return result


def needed(warm: dict[str, Any], cold: dict[str, Any]) -> dict[str, Any]:
    """Steps to the loss and to the mAP of the whole cold run, and their cost as shares of its time."""
    last = COLD[-1]
    loss, score = cold["loss"][last][0], cold["mAP"][last][0]
    to_loss = next((s for s, v in enumerate(warm["losses"]) if v <= loss), None)
    to_score = next((s for s, v in warm["mAP"].items() if v[0] >= score - NEAR), None)
    fit = warm["fit_seconds"] / cold["seconds"]  # in steps of one sample

    def share(steps: int | None) -> float | None:
        return None if steps is None else (fit + steps * IMAGES) / (last * IMAGES)

    return {
        "steps_to_loss": to_loss, "steps_to_mAP": to_score, "fit_steps": fit,
        "share_to_loss": share(to_loss), "share_to_mAP": share(to_score),
    }  # fmt: skip


# -- tables and picture ------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 3) -> str:
    return "not reached" if value is None else f"{value:.{digits}f}"


def _at(steps: dict[str, Any], step: int) -> list[float]:
    return steps[str(step)]  # JSON has texts as keys


def _ap(estimate: list[float]) -> str:
    return f"{100 * estimate[0]:.1f}"


def _steps(warm: dict[str, Any]) -> str:
    found = warm["steps_to_mAP"]
    return f"over {WARM[-1]}" if found is None else str(found)


def tables(results: list[dict[str, Any]]) -> str:
    lines = [
        "| set, R | images, queries, rows of the fit | cold 20 / 150 | warm 0 / 1 / 5 / 10 / 20 / 40 | steps "
        "to the cold loss | share of the time | fit alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cold, warm = r["cold"], r["maps"]["default"]
        losses = " / ".join(_number(_at(warm["loss"], s)[0]) for s in (0, 1, 5, 10, 20, 40))
        steps = warm["steps_to_loss"] if warm["steps_to_loss"] is not None else f"over {WARM[-1]}"
        lines.append(
            f"| {r['set']}, {r['tokens']} | {r['images']}, {r['queries']}, {warm['rows']} | "
            f"{' / '.join(_number(_at(cold['loss'], s)[0]) for s in (20, 150))} | {losses} | {steps} | "
            f"{_number(warm['share_to_loss'])} | {_number(warm['fit_steps'] / COLD[-1] / IMAGES)} |"
        )
    lines += [
        "",
        "| set, R | native | cold 15 / 150 | default map: 0 / 1 / 3 / 5 / 10 / 40 | warm 3 − cold 150 | "
        "steps | share | small map: 0 / 1 / 3 / 5 | steps | share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cold, warm, small = r["cold"], r["maps"]["default"], r["maps"]["small"]
        change = [100 * v for v in _at(warm["difference"], 3)]
        lines.append(
            f"| {r['set']}, {r['tokens']} | {_ap(r['native'])} | "
            f"{' / '.join(_ap(_at(cold['mAP'], s)) for s in (15, 150))} | "
            f"{' / '.join(_ap(_at(warm['mAP'], s)) for s in (0, 1, 3, 5, 10, 40))} | "
            f"{change[0]:+.1f} ({change[1]:+.1f} to {change[2]:+.1f}) | {_steps(warm)} | "
            f"{_number(warm['share_to_mAP'])} | "
            f"{' / '.join(_ap(_at(small['mAP'], s)) for s in (0, 1, 3, 5))} | {_steps(small)} | "
            f"{_number(small['share_to_mAP'])} |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [r for r in results if r["set"] == "all" or (r["set"], r["tokens"]) == ("logos", 1)] or results[
        :2
    ]
    figure, axes = plt.subplots(2, len(shown), figsize=(3.1 * len(shown), 5.4), layout="constrained")
    axes = axes.reshape(2, -1)
    for column, r in enumerate(shown):
        warm = r["maps"]["default"]
        for row, (what, factor) in enumerate((("loss", 1), ("mAP", 100))):
            ax = axes[row][column]
            for label, found in (("cold", r["cold"]), ("learned start", warm)):
                steps = [int(s) for s in found[what]]
                values = torch.tensor(list(found[what].values())) * factor
                ax.plot(steps, values[:, 0], marker=".", label=label)
                ax.fill_between(steps, values[:, 1], values[:, 2], alpha=0.2)
            ax.set_xscale("symlog", linthresh=10)
            ax.set_xticks([0, 5, 10, 20, 50, 150], ["0", "5", "10", "20", "50", "150"])
            if row:
                ax.axhline(100 * r["native"][0], color="black", linestyle="--", linewidth=1, label="native")
                ax.set_xlabel("steps")
            else:
                ax.set_yscale("log")
                ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"])
                ax.minorticks_off()
                ax.set_title(f"{r['set']}, R = {r['tokens']}", fontsize=9)
            if not column:
                ax.set_ylabel("loss" if not row else "mAP, %")
                ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=["all", *SETS])
    parser.add_argument("--tokens", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--render", action="store_true", help="only tables and picture of --results")
    args = parser.parse_args()
    if args.render:
        results = json.loads(args.results.read_text())
    else:
        results = json.loads(args.results.read_text()) if args.results.exists() else []
        for count in args.tokens:
            for name in args.sets:
                found = json.loads(json.dumps(measure(name, count, args.queries)))
                results = [r for r in results if (r["set"], r["tokens"]) != (name, count)] + [found]
                results.sort(key=lambda r: (r["tokens"], ("all", *SETS).index(r["set"])))
                args.results.write_text(json.dumps(results, indent=1) + "\n")
                print(tables([found]), flush=True)
    print(tables(results))
    draw(results, args.figure)


if __name__ == "__main__":
    main()
