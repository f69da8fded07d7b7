"""`semobridge-ext demo`: what the package is for, measured on a real CLIP: figures and a picture."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from semobridge_ext import _files
from semobridge_ext.cli import demo_fewshot, demo_plot, demo_retrieval, demo_speed, demo_text
from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.embedded import TEMPLATES, chosen_sets, load_clip
from semobridge_ext.cli.fewshot_problems import of_drawings
from semobridge_ext.cli.output import has_matplotlib, write_json

SCHEMA = "semobridge-ext demo 2"
PICTURE = "demo.png"
# What is shown unless it is told, each with the classes that are left out between two that are taken.
DEFAULT = {"flags": 1, "logos": 1, "emoji": 1, "icons": 4}
RETRIEVAL = 2  # sets that retrieval is measured on, the first

_DESCRIPTION = """\
Shows what the package is for on a small, real CLIP that comes with it (trained on drawings and their
names; the sets here are in drawing styles that it never saw): few-shot classification, image-to-image
retrieval, and speed against the plain programs. Everything runs offline on the CPU.
"""
_EPILOG = """\
what the figures mean:
  zero-shot                cosine of a drawing's feature and the class texts; uses no shots
  nearest class mean       cosine with the mean of a class's shots
  blend without bridge     the control: SeMoBridge with the identity for its bridge norm(f W+) W
  SeMoBridge-T             trained for 150 steps with the rates of the fast preset
                           all blends are tuned on validation drawings by 200 random trials
  mean of the sets         a set whose classes have fewer drawings stands with the most that it has
  ±                        standard deviation over the seeds, which draw the shots
  *                        a paired difference beyond noise: to zero-shot, or in retrieval to native
                           features, above three standard errors, counting the draw of the shots and
                           the finite number of test drawings (in retrieval: of classes)
  → in retrieval           the map that was the best on held-out classes; all maps are fitted to other
                           classes than those that are searched
  time                     medians, the two programs taking turns; error is the largest relative
                           difference of a result's rows (blend search: of an accuracy)

examples:
  semobridge-ext demo                            flags, logos, emoji and a quarter of the icons
  semobridge-ext demo --set icons --shots 1 8    a set that is named is taken whole; --set all: every one
  semobridge-ext demo --json figures.json --no-plot
  OMP_NUM_THREADS=1 semobridge-ext demo          on one thread
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="what the package is for, on real images: accuracy, retrieval, speed, and a picture",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--set", nargs="+", metavar="NAME",
        help="evaluation sets, or 'all' (default: flags logos emoji, and every fourth class of icons)",
    )  # fmt: skip
    parser.add_argument(
        "--shots", type=count, nargs="+", default=[1, 2, 4], metavar="K",
        help="shots per class, as far as the classes reach (default: 1 2 4)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=count, default=3, metavar="N", help="draws of the shots (default: 3)")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT",
        help="prompt with {} for the class name; may be repeated (default: "
        + ", ".join(f"'{t}'" for t in TEMPLATES) + ")",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path(PICTURE), metavar="PNG",
        help=f"where the picture goes (default: {PICTURE})",
    )  # fmt: skip
    parser.add_argument("--no-plot", action="store_true", help="draw no picture")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures as JSON too")


def _progress(description: str) -> Any:
    def wrap(steps: Iterable[Any], total: int) -> Iterable[Any]:
        from tqdm import tqdm

        # disable=None: silent where stderr is no terminal.
        return tqdm(steps, total=total, desc=description, delay=1, leave=False, disable=None)

    return wrap


def _check_target(option: str, path: Path) -> None:
    """A path that cannot be written is told before the work, not after it."""
    if not path.is_dir() and _files.is_written_into(path):
        return  # /dev/stdout, a FIFO: what it is says whether it can be written
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "is a folder" if path.is_dir() else "lies in no folder that can be written"
        raise ValueError(f"{option} must be a file that can be written, got {path}, which {why}")


def _check_prompts(prompts: list[str] | None) -> None:
    for prompt in prompts or ():
        if "{}" not in prompt:
            remedy = "write for example 'a drawing of {}'"
            raise ValueError(f"--prompt must contain {{}}, got {prompt!r}; {remedy}")


def _datasets(words: list[str] | None, shots: list[int]) -> dict[str, tuple[Any, int]]:
    """The sets by name, and which part of their classes; refused where the shots reach no class."""
    from semobridge_ext.data import load_picto

    parts = DEFAULT if words is None else {name: 1 for word in words for name in chosen_sets(word)}
    found = {name: (demo_fewshot.every(load_picto(name), step), step) for name, step in parts.items()}
    for name, (dataset, _) in found.items():
        most = demo_fewshot.most_shots(dataset)
        if min(shots) > most:
            raise ValueError(
                f"--shots must be at most {most} for the set '{name}', what half of its classes have to take "
                f"shots from, got {min(shots)}; choose fewer"
            )
    return found


def _header(name: str, figures: dict[str, Any]) -> str:
    part = f"; one class in {figures['step']}" if figures["step"] > 1 else ""
    most = figures["shots"][-1]
    told = f"; with at most {demo_text.plural(most)} a class" if figures["shots_left_out"] else ""
    if short := figures["short_classes"][str(most)]:
        told += f"; {short} of the classes have fewer than {demo_text.plural(most)} and give all they have"
    return (
        f"{name} ({figures['description'].rstrip('.')}{part}): {figures['classes']} classes, "
        f"{figures['train_images']} drawings to take shots from, {figures['validation_images']} to tune on, "
        f"{figures['test_images']} to test{told}."
    )


def _filled(sentence: str, **indents: str) -> str:
    return textwrap.fill(sentence, 98, break_on_hyphens=False, **indents)  # type: ignore[arg-type]


def _print_lines(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(_filled(sentence, initial_indent="- ", subsequent_indent="  "))


def _print(record: dict[str, Any], where: str) -> None:
    mean, sets, retrieval, speed = (record[key] for key in ("mean", "sets", "retrieval", "speed"))
    for sentence in demo_text.sentences(mean, where, retrieval, speed):
        print(_filled(sentence) + "\n")
    print(demo_text.accuracy_table(mean, sets, record["seeds"]) + "\n")
    print(demo_text.retrieval_table(retrieval) + "\n")
    print(demo_text.speed_table(speed, record["environment"]["threads"]) + "\n")
    _print_lines([_header(name, figures) for name, figures in sets.items()])
    _print_lines(["* beyond noise, → chosen on held-out classes; semobridge-ext demo --help says how."])


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from semobridge_ext.runtime.info import build_info

    wanted = sorted(set(args.shots))
    datasets = _datasets(args.set, wanted)
    clip = load_clip()
    problems, sets = [], {}
    for name, (dataset, step) in datasets.items():
        began = time.perf_counter()
        templates = tuple(args.prompt or TEMPLATES)
        problem = of_drawings(clip, dataset, templates, _progress(f"encoding {name}"))
        encoding = (time.perf_counter() - began) / len(dataset.labels)
        found = demo_fewshot.set_figures(problem, wanted, range(args.seeds), _progress(f"episodes of {name}"))
        facts = {"description": dataset.description, "step": step, "seconds_per_image_encoding": encoding}
        left_out = [k for k in wanted if k not in found["shots"]]
        sets[name] = {**facts, **found, "shots_left_out": left_out}
        problems.append(problem)
    say = _progress("retrieval and speed")
    parts: dict[str, Any] = {}
    for part in say(("retrieval", "speed"), 2):
        if part == "retrieval":
            parts[part] = demo_retrieval.figures(clip, problems[:RETRIEVAL])
        else:
            # The blend is searched on the largest set.
            largest = max(problems, key=lambda p: len(p.test[1]) * (int(p.train[1].max()) + 1))
            parts[part] = demo_speed.figures(clip, largest)
    return {
        "schema": SCHEMA,
        "seeds": args.seeds,
        "templates": list(args.prompt or TEMPLATES),
        "methods": demo_fewshot.OPTIONS._asdict(),
        "sets": sets,
        "mean": demo_fewshot.mean_figures(list(sets.values())),
        **parts,
        "environment": build_info(),
    }


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    draw = not args.no_plot
    if draw:
        _check_target("--out", args.out)
    if args.json is not None:
        _check_target("--json", args.json)
    _check_prompts(args.prompt)
    record = _measure(args)
    names = list(record["sets"])
    where = f"mean of {demo_text.listed(names)}" if len(names) > 1 else names[0]
    _print(record, where)
    if args.json is not None:
        write_json(args.json, record)
        print(f"\nfigures: {args.json}")
    if draw and has_matplotlib():
        demo_plot.save(args.out, record["mean"], f"Few shots: {where}", record["speed"])
        print(f"\npicture: {args.out}")
    elif draw:
        print("\nno picture: matplotlib is missing; pip install 'semobridge-ext[plots]' and run again")
    print(f"{time.perf_counter() - began:.1f} s in all", file=sys.stderr)
    return 0
