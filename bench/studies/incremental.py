"""Findings learned task after task on the embedded sets: the tables of docs/guides/incremental.md.

    python bench/studies/incremental.py                      # two sets, three seeds: a minute on a core
    python bench/studies/incremental.py --set arrows --seeds 1

A drawing's findings are the words of its name that several names of the set share: arrows has eight ("down",
"circle", …) in 23 names, icons 19 in 306. The fixed parts train and test; nothing is tuned here, the
settings were fixed beforehand. Every test holds all test drawings, with the findings of its task.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.clip import encode_image
from semobridge_ext.incremental import (
    Task,
    class_incremental,
    data_incremental,
    encode_findings,
    label_incremental,
)

RESULTS = Path(__file__).resolve().parents[1] / "results" / "incremental.json"
SHARED = 3  # names that a word must occur in
TASKS = {"arrows": 4, "icons": 5}
PROTOCOLS: dict[str, Callable[..., list[Task]]] = {
    "class-incremental": class_incremental,
    "label-incremental": label_incremental,
    "data-incremental": data_incremental,
}
POSITIVE, NEGATIVE = "an icon of {}", "an icon without {}"
ADAPTORS: dict[str, dict[str, Any]] = {"linear": {}, "bottleneck": {"adaptor": "bottleneck"}}


def findings_of(data: Any) -> tuple[list[str], Tensor]:
    """The shared words and [N, L] labels."""
    counts = Counter(word for name in data.class_names for word in set(name.split()))
    words = sorted(word for word, count in counts.items() if count >= SHARED)
    table = torch.tensor([[word in name.split() for word in words] for name in data.class_names])
    return words, table[data.labels].long()


def in_order(
    x: Tensor, y: Tensor, prompts: Tensor, tasks: list[Task], test: tuple[Tensor, Tensor], **settings: Any
) -> sb.IncrementalReport:
    """One task after the other; after each, all tests are scored, those to come by their prompts alone."""
    words = list(range(y.shape[1]))
    model = sb.RETune(**settings).add_findings(prompts, words)
    scores = []
    for task in tasks:
        labels = y[task.rows][:, task.findings]
        model.partial_fit(x[task.rows], labels, findings=task.findings.tolist(), known=task.known)
        z = model.decision_function(test[0])
        scores.append([z[:, other.findings] for other in tasks])
    return sb.incremental_report([test[1][:, task.findings] for task in tasks], scores)


def together(
    x: Tensor, y: Tensor, prompts: Tensor, tasks: list[Task], test: tuple[Tensor, Tensor], **settings: Any
) -> sb.IncrementalReport:
    """The labels of all tasks at once, for as many epochs as the tasks have together."""
    known = torch.zeros(y.shape, dtype=torch.bool)
    for task in tasks:
        known[task.rows[:, None], task.findings] |= task.known
    model = sb.RETune(epochs=len(tasks) * sb.RETune().epochs, **settings).fit(x, y, prompts, known=known)
    return report_of(model, tasks, test)


def report_of(model: sb.RETune, tasks: list[Task], test: tuple[Tensor, Tensor]) -> sb.IncrementalReport:
    z = model.decision_function(test[0])
    rows = [[z[:, task.findings] for task in tasks]] * len(tasks)
    return sb.incremental_report([test[1][:, task.findings] for task in tasks], rows)


def positive_alone(prompts: Tensor, tasks: list[Task], test: tuple[Tensor, Tensor]) -> sb.IncrementalReport:
    """The cosine with the positive prompt, which needs no negative one."""
    cosines = normalize(test[0], dim=1) @ normalize(prompts[:, 0], dim=1).T
    rows = [[cosines[:, task.findings] for task in tasks]] * len(tasks)
    return sb.incremental_report([test[1][:, task.findings] for task in tasks], rows)


def figures(report: sb.IncrementalReport) -> list[float]:
    lost = (report.forgetting_average_precision, report.forgetting_auc)
    return [report.final_average_precision, report.final_auc, *lost]


def one_set(name: str, seeds: int) -> list[dict[str, Any]]:
    data = sb.load_picto(name)
    model, _, tokenizer = sb.load_picto_clip()
    words, y = findings_of(data)
    prompts = encode_findings(model, words, positive=POSITIVE, negative=NEGATIVE, tokenizer=tokenizer)
    x = encode_image(model, sb.picto_transform(data.images))
    train, test = (x[data.train], y[data.train]), (x[data.test], y[data.test])
    results = []
    for protocol, make in PROTOCOLS.items():
        for seed in range(seeds):
            tasks = make(train[1], TASKS[name], seed=seed)
            found = {"zero-shot": figures(report_of(sb.RETune().add_findings(prompts), tasks, test))}
            found["zero-shot, positive alone"] = figures(positive_alone(prompts, tasks, test))
            for adaptor, settings in ADAPTORS.items():
                given = {**settings, "seed": seed}
                joint = together(*train, prompts, tasks, test, **given)
                found[f"joint, {adaptor}"] = figures(joint)
                found[f"in order, {adaptor}"] = figures(in_order(*train, prompts, tasks, test, **given))
            results.append({"set": name, "protocol": protocol, "seed": seed, "scores": found})
            shown = {method: round(100 * values[0], 1) for method, values in found.items()}
            print(name, protocol, seed, shown, flush=True)
    counts = {"findings": words, "train": len(train[0]), "test": len(test[0])}
    return [{**counts, **result} for result in results]


def table(results: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds of the final mAP, and what was forgotten of it; per cent."""
    methods = list(results[0]["scores"])
    lines = ["| set | protocol | " + " | ".join(methods) + " |", "|---|---|" + "---:|" * len(methods)]
    for name, protocol in dict.fromkeys((r["set"], r["protocol"]) for r in results):
        runs = [r["scores"] for r in results if (r["set"], r["protocol"]) == (name, protocol)]
        cells = []
        for method in methods:
            final = [100 * run[method][0] for run in runs]
            spread = statistics.stdev(final) if len(final) > 1 else 0.0
            lost = 100 * statistics.mean(run[method][2] for run in runs)
            told = f" (−{lost:.1f})" if method.startswith("in order") else ""
            cells.append(f"{statistics.mean(final):.1f} ± {spread:.1f}{told}")
        lines.append(f"| {name} | {protocol} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = [result for name in given.set for result in one_set(name, given.seeds)]
    kept = {"prompts": [POSITIVE, NEGATIVE], "settings": sb.RETune().get_params(), "results": results}
    given.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
