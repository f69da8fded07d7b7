"""`semobridge-ext demo`: a real CLIP bridged on real images, with figures and a picture."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from semobridge_ext import _files
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli import demo_measure, demo_plot, demo_text
from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.embedded import TEMPLATES, chosen_sets
from semobridge_ext.cli.output import has_matplotlib, write_json

SCHEMA = "semobridge-ext demo 1"
PICTURE = "demo.png"

_DESCRIPTION = """\
Bridges the image features of a small, real CLIP that comes with the package (trained on drawings and
their names; the sets here are in drawing styles that it never saw) and measures what that does.
Everything runs offline on the CPU.
"""
_EPILOG = """\
what the figures mean (f a drawing's feature, t the class texts, K shots per class; nothing is tuned):
  zero-shot text           cosine of f and t; uses no shots
  direct prototypes        cosine of f and the mean feature of the K shots
  bridged prototypes       the shots are bridged before their mean is taken: norm(f W+) W
  bridged queries          the query is bridged, the shots are not
  blend                    exp(z-1) of text, bridged prototypes and bridged queries, summed with
                           equal weights
  blend without the bridge the control: the same sum with direct prototypes in both image places
  ±                        standard deviation over the seeds, which draw the shots
  beyond noise             a paired difference above three standard errors, counting both the
                           drawing of the shots and the finite number of test drawings
  modality gap             distance between the mean unit image feature and the mean unit text
                           feature; the picture shows it in two principal components, the one
                           that holds most of the gap and the first of the others
  time per image           the bridge against the same formula in plain PyTorch (two products and
                           two norms, pseudo-inverse ready), taking turns, medians of one run

examples:
  semobridge-ext demo                            the set 'icons', picture in demo.png
  semobridge-ext demo --set flags --shots 1 4    another set; --set all takes every one
  semobridge-ext demo --json figures.json --no-plot
  OMP_NUM_THREADS=1 semobridge-ext demo          on one thread
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="bridge a real CLIP on real images: accuracy, time, and a picture",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--set", default="icons", metavar="NAME", help="evaluation set, or 'all' (default: icons)"
    )
    parser.add_argument(
        "--shots", type=count, nargs="+", default=[1, 2, 4, 8], metavar="K",
        help="shots per class (default: 1 2 4 8)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="draws of the shots (default: 5)")
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


def _load_clip() -> demo_measure.Clip:
    from semobridge_ext.data import load_picto_clip

    model, preprocess, tokenizer = load_picto_clip()
    return demo_measure.Clip(model.eval(), preprocess, tokenizer)


def _measure_set(
    name: str, clip: demo_measure.Clip, args: argparse.Namespace
) -> tuple[dict[str, Any], demo_measure.Cloud, Callable[[], dict[str, Any]]]:
    from semobridge_ext.data import load_picto

    templates = tuple(args.prompt or TEMPLATES)
    began = time.perf_counter()
    dataset = load_picto(name)
    problem = demo_measure.load_problem(clip, dataset, templates, _progress(f"encoding {name}"))
    encoded = time.perf_counter()
    bridge = Bridge.from_clip(clip.model, text_length=problem.text_length)
    labels, classes = problem.train[1], len(dataset.class_names)
    drawings = len(labels) + len(problem.test[1])
    sizes = labels.bincount(minlength=classes)
    wanted = sorted(set(args.shots))
    shots = [k for k in wanted if k <= int(sizes.max())]
    if not shots:
        raise ValueError(
            f"--shots must be at most {int(sizes.max())} for the set '{name}', the drawings that its "
            f"largest class has to take shots from, got {wanted[0]}; choose fewer"
        )
    figures: dict[str, Any] = {
        "set": name,
        "description": dataset.description,
        "classes": classes,
        "train_images": len(labels),
        "test_images": len(problem.test[1]),
        "fewest_per_class": int(sizes.min()),
        "most_per_class": int(sizes.max()),
        "chance": 1 / classes,
        "shots": shots,
        "shots_left_out": [k for k in wanted if k not in shots],
        "short_classes": {str(k): int((sizes < k).sum()) for k in shots},
        "seeds": list(range(args.seeds)),
        "templates": list(templates),
        "text_length": problem.text_length,
        "seconds_per_image_encoding": (encoded - began) / drawings,
    }
    figures |= demo_measure.accuracy_figures(
        problem, bridge, figures["shots"], figures["seeds"], _progress(f"episodes of {name}")
    )
    figures["gap"], cloud = demo_measure.gap_figures(problem, bridge)
    return figures, cloud, partial(demo_measure.speed_figures, bridge, problem.test[0])


def _print_set(figures: dict[str, Any]) -> None:
    print(f"\n{demo_text.header(figures)}")
    _print_findings(demo_text.remarks(figures))
    print(f"\n{demo_text.accuracy_table(figures)}\n\n{demo_text.difference_table(figures)}\n")
    _print_findings(demo_text.findings(figures))


def _print_findings(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(textwrap.fill(sentence, 98, initial_indent="- ", subsequent_indent="  "))


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    draw = not args.no_plot
    if draw:
        _check_target("--out", args.out)
    if args.json is not None:
        _check_target("--json", args.json)
    names = chosen_sets(args.set)
    clip = _load_clip()
    results = []
    for name in names:
        figures, cloud, time_bridge = _measure_set(name, clip, args)
        results.append((figures, cloud))
        _print_set(figures)
    speed = time_bridge()  # the bridge does the same work whichever set its rows come from
    print(f"\n{demo_text.speed_table(speed)}\n")
    _print_findings([demo_text.speed_finding(speed)])
    if args.json is not None:
        from semobridge_ext.runtime.info import build_info

        record = {
            "schema": SCHEMA,
            "sets": {figures["set"]: figures for figures, _ in results},
            "speed": speed,
            "environment": build_info(),
        }
        write_json(args.json, record)
        print(f"\nfigures: {args.json}")
    if draw and has_matplotlib():
        demo_plot.save(args.out, results)
        print(f"\npicture: {args.out}")
    elif draw:
        print("\nno picture: matplotlib is missing; pip install 'semobridge-ext[plots]' and run again")
    print(f"{time.perf_counter() - began:.1f} s in all", file=sys.stderr)
    return 0
