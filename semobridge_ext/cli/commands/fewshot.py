"""`semobridge-ext fewshot`: the few-shot study, on embedded sets, data sets by name or feature files."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from semobridge_ext import _files, _locks
from semobridge_ext.cli import fewshot_output, fewshot_problems, models
from semobridge_ext.cli.arguments import NAMED, add_problem, count
from semobridge_ext.cli.fewshot_store import Store
from semobridge_ext.cli.named.problem import prepare
from semobridge_ext.fewshot.study import Problem, reachable, run_episode
from semobridge_ext.fewshot.study_estimators import DEFAULT, METHODS, EstimatorMethods, Options

_EPILOG = """\
feature files (.npz or .safetensors): 'features' [N, D] raw image features and 'labels' [N] integers
from 0, in the other files those of the training file. That one may add 'text' [C, D], 'hidden' [C, T]
(the same before the projection), 'text_projection' [T, D] and 'image_projection' [V, D]; ProLIP needs the
latter and in every file 'before' [N, V], the features before it. Methods that need what is absent are left
out. A folder of shards, a .parquet file, a folder of such files or a .lance data set does as well: its column
label holds whole numbers or class names, and where settings.json names the model, it makes class texts
(--template, --prompts). Without --val, a third of every class's training rows is set aside for validation,
and no shot is drawn from it.

--dataset names data sets below --root, or folders and tars with labels, as `extract` takes them: images are
encoded once by --model into OUT/features, class texts in the data set's own prompts, in --template or from
--prompts. Shots come from the training part. Official splits count; where there is no validation part, a
fifth of every class's training images is drawn for it, where there are no splits at all, 50, 20 and 30 % of
every class. The output says which. --split takes CoOp's files.

what is compared: docs/guides/fewshot.md. Every method sees the same draws of shots; blends, α, β, λ, ρ and
rates are tuned on the validation part; the test part is scored once.

an interrupted study goes on with the same command, and more --shots, --seeds or sets join it. A folder
whose results come from other features, labels, text, methods or settings, or from another version, is
refused, and the message says what differs.

examples:
  semobridge-ext fewshot --set icons --shots 1 4 --preset fast
  semobridge-ext fewshot --out study             every embedded set; continues where it was interrupted
  semobridge-ext fewshot --train a.npz --test b.npz
  semobridge-ext fewshot --dataset torchvision:DTD torchvision:EuroSAT --root data/ --model ViT-B-32 \
    --pretrained checkpoints/vitb32.pt
"""


def _methods(words: str) -> list[str]:
    """Names with commas between them; a comma that a blank follows is part of a name."""
    names = re.split(r",(?! )", words)
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose of {'; '.join(METHODS)}"
            raise argparse.ArgumentTypeError(f"invalid choice: {name!r}; {hint}")
    return names


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "fewshot",
        help="the few-shot study: all methods, shots and seeds; tables and a picture",
        description="Compares SeMoBridge, its ablations, cache models and plain baselines.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", default="all", metavar="NAME", help="embedded set, or 'all' (default)")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help=f"data sets, instead: {NAMED}")
    models.add_arguments(parser)
    add_problem(parser)
    parser.add_argument("--train", type=Path, metavar="FILE", help="features to draw shots from, instead")
    parser.add_argument("--val", type=Path, metavar="FILE", help="features to tune on")
    parser.add_argument("--test", type=Path, metavar="FILE", help="features to score on")
    many = [1, 2, 4, 8, 16]
    text = "shots per class, as far as the classes reach (default: 1 2 4 8 16)"
    parser.add_argument("--shots", type=count, nargs="+", default=many, metavar="K", help=text)
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="draws of shots (default: 5)")
    parser.add_argument("--trials", type=count, default=1000, help="of the blend search (default: 1000)")
    text = "of the blend search (default: random; optuna is TPE, slower a trial)"
    parser.add_argument("--sampler", choices=("random", "optuna"), default="random", help=text)
    parser.add_argument("--preset", choices=("paper", "fast"), default="paper", help="of the training")
    text = "training steps, instead of the preset's; also a bound on the 300 of LP++ and ProLIP"
    parser.add_argument("--steps", type=count, help=text)
    text = (
        f"only these, apart or with commas between: {'; '.join(METHODS)} (default: all but LP++ and ProLIP)"
    )
    parser.add_argument("--methods", nargs="+", type=_methods, metavar="NAME", help=text)
    parser.add_argument("--out", type=Path, default=Path("fewshot-study"), metavar="FOLDER",
                        help="where fewshot.md, .csv, .png and the single results go")  # fmt: skip
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")


# -- the run --------------------------------------------------------------------------------------------


def _run_set(
    problem: Problem, args: argparse.Namespace, options: Options, store: Store
) -> list[fewshot_output.Record]:
    from tqdm import tqdm

    names = tuple(name for words in args.methods or [DEFAULT] for name in words)
    # More shots, seeds or sets go into the same folder: an episode knows of no other.
    done = store.open(problem, {**options._asdict(), "methods": sorted(set(names))})
    methods = EstimatorMethods(problem, options, names)
    records: list[fewshot_output.Record] = []
    episodes = [(k, seed) for k in reachable(problem.train[1], args.shots) for seed in range(args.seeds)]
    for shots, seed in tqdm(episodes, desc=problem.name, disable=None, leave=False):
        if (shots, seed) not in done:
            outcomes = run_episode(problem, methods, shots, seed)
            done[shots, seed] = [
                {
                    "set": problem.name, "shots": shots, "seed": seed, "method": name,
                    "accuracy": outcome.accuracy, "seconds_fit": outcome.seconds_fit,
                    "seconds_tune": outcome.seconds_tune,
                }
                for name, outcome in outcomes.items()
            ]  # fmt: skip
            store.add(problem, shots, seed, done[shots, seed])
        records += done[shots, seed]
    return records


def _described(problems: Iterable[Problem]) -> Iterator[tuple[Problem, list[str]]]:
    for problem in problems:
        parts = (problem.train, problem.val, problem.test)
        counts = [0 if part is None else len(part[1]) for part in parts]
        classes = int(problem.train[1].max()) + 1
        yield (
            problem,
            [
                f"{problem.name}: {classes} classes; {counts[0]} training, {counts[1]} validation, "
                f"{counts[2]} test images"
            ],
        )


def _named(args: argparse.Namespace) -> Iterator[tuple[Problem, list[str]]]:
    """Data sets by name, encoded below --out as they come."""
    names = models.resolve("fewshot", args.model, args.pretrained)
    encoder = models.load("fewshot", *names, args.device)
    for spec in args.dataset:
        found = prepare("fewshot", spec, args, names, encoder, args.out / "features")
        yield found.problem, found.notes


def run(args: argparse.Namespace) -> int:
    if args.sampler == "optuna" and find_spec("optuna") is None:
        raise ImportError(
            "fewshot: optuna must be installed for --sampler optuna, got none; "
            "pip install 'semobridge-ext[search]', or pass --sampler random"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    with _locks.held("fewshot", "--out", args.out, args.out / ".lock"):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    options = Options(args.trials, args.sampler, args.preset, args.steps)
    store = Store(args.out / "results.jsonl")
    files = args.train is not None or args.test is not None
    problems: Iterable[tuple[Problem, list[str]]]
    if files and args.dataset:
        raise ValueError("fewshot: --dataset must stand without --train and --test, got both; leave one out")
    if args.dataset:
        problems = _named(args)
    elif files:
        problems = _described([fewshot_problems.of_files(args.train, args.val, args.test, args)])
    else:
        problems = _described(fewshot_problems.of_sets(args.set))
    records: list[fewshot_output.Record] = []
    notes = []
    for problem, told in problems:
        notes += [f"- {line}" for line in told]
        print("\n".join(notes[-len(told) :]), file=sys.stderr)
        records += _run_set(problem, args, options, store)
    rows = fewshot_output.summary(records)
    steps = args.steps or {"paper": 5000, "fast": 500}[args.preset]
    settings = f"{args.seeds} seeds; {args.trials} {args.sampler} trials; {steps} training steps."
    present = {r["method"] for r in rows}
    explained = [f"- {name}: {what}" for name, what in METHODS.items() if name in present]
    sentences = fewshot_output.findings(rows)
    text = "\n".join([
        "# Few-shot study", "", "Test accuracy in % (mean ± standard deviation over draws of the shots). "
        + settings, "", *notes, "", *explained, "", "## Findings", "", *(f"- {s}" for s in sentences), "",
        "## Tables", "", fewshot_output.as_markdown(rows),
    ])  # fmt: skip
    _files.write_text(args.out / "fewshot.md", text)
    _files.write_text(args.out / "fewshot.csv", fewshot_output.as_csv(rows))
    print(fewshot_output.as_markdown(rows))
    print("\n".join(f"- {s}" for s in sentences))
    if not args.no_plot:
        try:
            fewshot_output.draw(args.out / "fewshot.png", rows)
        except ImportError:
            print("no picture: matplotlib is missing; pip install 'semobridge-ext[plots]' and run again")
    print(f"\nwritten: {args.out}/fewshot.md, fewshot.csv" + ("" if args.no_plot else ", fewshot.png"))
    return 0
