"""`semobridge-ext discover`: the unlabelled images of a folder put to known classes and to new ones."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _files, _locks
from semobridge_ext.cli import discovery_output, discovery_problem, models
from semobridge_ext.cli.arguments import add_input_dataset, count
from semobridge_ext.cli.discovery_problem import Problem
from semobridge_ext.cli.output import Tell, tell
from semobridge_ext.cli.results import Discovered, Found
from semobridge_ext.cli.shards import Folder
from semobridge_ext.discovery import (
    GCDAccuracy,
    NumClassesEstimate,
    SpectralFilter,
    SpectralGCD,
    estimate_num_classes,
    gcd_accuracy,
    merge_concepts,
    read_concepts,
)

_DESCRIPTION = """\
Generalized category discovery (SpectralGCD, on features): some images of some classes are labelled; every
other image is put to one of these classes or to a new one. New classes are told by the concepts that their
images show most.
"""
_EPILOG = """\
input:
  FOLDER         images, extracted into OUT/features as `extract` does; or a folder of shards,
                 a .parquet file, a folder of such files, a .lance data set (--model names its model)
  torchvision:NAME, hf:OWNER/NAME: a data set by name below --root, as `extract` takes them
  picto:NAME     an embedded set (icons, emoji, flags, logos, arrows): half of its classes are old, and every
                 second drawing of these is labelled; All, Old and New are then told, too
labels, one of:
  --labels CSV   columns image and label; paths are relative to the file. What it does not name is unlabelled
  --old NAME ..  sub-folders whose names are labels; the images of the others are unlabelled

--classes counts old and new classes. auto estimates the count (sb.estimate_num_classes): k-means with counts
up to --max-classes, judged by labelled classes whose labels it does not see. It may be far off, in both
directions; report.md has the curve. Where you know the count, or a rough one, say it.
--concepts is a dictionary, a name a line or the last column of a CSV; without it the class names of the
embedded sets serve, which are drawings of things: for photographs pass a dictionary of your own.
--teacher is a folder of shards of the same images by a larger CLIP. Without it the student's own features
teach: the divergences then hold the concepts in place, and bring no knowledge.
Settings are those of the guide's table; --paper takes the paper's width, hidden layers and 200 epochs.

output: assignments.csv (image, cluster, name, kind, label, probability; labelled images are classified like
the others, so that their label may differ), sheet.png or --html (the new
classes), report.md, concepts.txt, model.safetensors (sb.SpectralGCD.load). The same command goes on after
a kill: extraction by shards, training by OUT/training.safetensors, which refuses other data or settings.

examples:
  semobridge-ext discover photos/ --labels labels.csv --classes 40 --concepts words.txt --out found/
  semobridge-ext discover photos/ --old cat dog --classes 10 --out found/
  semobridge-ext discover photos/ --labels labels.csv --classes auto --max-classes 200 --out found/
  semobridge-ext discover picto:arrows --classes 23 --out found/
"""
_PAPER = {"width": 768, "hidden": 2048, "projection": 256, "epochs": 200, "entropy_weight": 1.0}
_SMALL = {"width": 256, "hidden": 256, "projection": 64, "epochs": 40, "entropy_weight": 2.0}
_BATCH = 128
AUTO = "auto"


class _Classes:
    """What --classes takes: a number, or the word for an estimate."""

    words = (AUTO,)

    def __call__(self, word: str) -> int | str:
        return word if word == AUTO else count(word, 2)


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "discover",
        help="known and new classes among the unlabelled images of a folder; table, sheet, report",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="folder of images or of shards, or picto:NAME")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("--classes", type=_Classes(), required=True,
                        metavar="N", help="old and new classes together; auto: estimated")  # fmt: skip
    text = "--classes auto: the largest count tried (default: ten times the old classes)"
    parser.add_argument("--max-classes", type=lambda w: count(w, 2), metavar="N", help=text)
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--labels", type=Path, metavar="CSV", help="which images have which label")
    labels.add_argument("--old", nargs="+", metavar="NAME", help="sub-folders whose names are labels")
    add_input_dataset(parser)
    models.add_arguments(parser)
    parser.add_argument("--concepts", type=Path, metavar="FILE", help="dictionary of names")
    parser.add_argument("--template", default="a photo of {}", help="of the prompts (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, metavar="SHARDS", help="features by a larger CLIP")
    parser.add_argument("--paper", action="store_true", help="the paper's sizes and epochs")
    parser.add_argument("--epochs", type=count, metavar="N", help="instead of 40, or of the paper's 200")
    parser.add_argument("--seed", type=lambda w: count(w, 0), default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--hits", type=count, default=8, metavar="K", help="images a class in the sheet")
    parser.add_argument("--html", action="store_true", help="the sheet as sheet.html")
    parser.add_argument("--workers", type=lambda w: count(w, 0), metavar="N",
                        default=min(8, len(os.sched_getaffinity(0))), help="decoding processes")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    found = perform(args, tell)
    print("\n".join(f"- {fact}" for fact in found.facts))
    for one in sorted(found.new, key=lambda f: -len(f.images))[:20]:
        print(f"  {len(one.images):>5}  {one.name}")
    tell(f"written: {args.out}: {', '.join(found.written)}")
    return 0


def perform(args: argparse.Namespace, tell: Tell) -> Discovered:
    """The whole of the command but its last lines; `tell` takes what it says on the way."""
    models.prompts("discover", [], args.template)  # refused before anything is encoded
    if args.labels is not None and args.old is not None:
        raise ValueError(
            f"discover: --labels must stand without --old, got {args.labels} beside {', '.join(args.old)}; "
            "leave one out"
        )
    if args.out.is_file():
        raise ValueError(f"discover: --out must be a folder, got the file {args.out}; choose another name")
    if args.max_classes is not None and args.classes != AUTO:
        raise ValueError(
            f"discover: --max-classes must stand beside --classes {AUTO}, got {args.max_classes} beside "
            f"{args.classes}; leave one out"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    with _locks.held("discover", "--out", args.out, args.out / ".lock"):
        return _run(args, tell)


def _dictionary(args: argparse.Namespace) -> list[str]:
    if args.concepts is not None:
        return merge_concepts(read_concepts(args.concepts))
    from semobridge_ext.data import list_picto, load_picto

    return merge_concepts(*(load_picto(name).class_names for name in list_picto()))


class _Side(NamedTuple):
    """Student or teacher."""

    images: Tensor  # [N, D]
    concepts: Tensor  # [K, D] of the dictionary


def _sides(args: argparse.Namespace, problem: Problem, names: list[str]) -> tuple[_Side, _Side]:
    prompts = models.prompts("discover", names, args.template)

    def side(folder: Folder, rows: Tensor) -> _Side:
        return _Side(rows, models.maker_of("discover", folder, args.device).texts(prompts))

    student = side(problem.shards, problem.features)
    if args.teacher is None:
        return student, student
    return student, side(*discovery_problem.teacher_features(args.teacher, problem.paths))


def _kept(names: list[str], old: list[str], teacher: _Side) -> list[int]:
    """Places in the dictionary of what the filter keeps, and of the old classes behind it."""
    kept = SpectralFilter().fit(teacher.images, teacher.concepts).kept_.tolist()
    place = {name.lower(): i for i, name in enumerate(names)}
    return list(dict.fromkeys([*kept, *(place[name.lower()] for name in merge_concepts(old))]))


def _counted(args: argparse.Namespace, problem: Problem) -> tuple[int, NumClassesEstimate | None]:
    """Old and new classes, and the estimate where it is one."""
    old = len(problem.old)
    if args.classes != AUTO:
        if not old or old > args.classes:
            got = f"{old} old ones" if old else "no labelled image"
            raise ValueError(
                f"discover: --classes must count the old classes too, got {got}; name some, or more"
            )
        return args.classes, None
    if old < 2 or (args.max_classes is not None and args.max_classes < old):
        contract = "meet two labelled classes" if old < 2 else f"have --max-classes from {old} up"
        raise ValueError(
            f"discover: --classes {AUTO} must {contract}, got {old if old < 2 else args.max_classes}; label "
            "more, or pass a count"
        )
    found = estimate_num_classes(
        problem.features, problem.labels, seed=args.seed, progress=_shows_progress(args),
        max_classes=args.max_classes and min(args.max_classes, len(problem.paths)),
    )  # fmt: skip
    return found.num_classes, found


def _shows_progress(args: argparse.Namespace) -> bool:
    return args.quiet is None or (not args.quiet and sys.stderr.isatty())  # None: a Python call asks for it


def _train(
    args: argparse.Namespace, problem: Problem, classes: int, student: _Side, teacher: _Side
) -> SpectralGCD:
    settings: dict[str, Any] = dict(_PAPER if args.paper else _SMALL)
    settings |= {"epochs": args.epochs} if args.epochs else {}
    settings |= {"batch_size": min(_BATCH, len(problem.paths)), "seed": args.seed}
    gcd = SpectralGCD(
        student.concepts, num_classes=classes, progress=_shows_progress(args), **settings
    )  # fmt: skip
    return gcd.fit(
        problem.features, problem.labels, teacher=tuple(teacher),
        checkpoint=args.out / "training.safetensors",
    )  # fmt: skip


def _run(args: argparse.Namespace, tell: Tell) -> Discovered:
    problem = discovery_problem.of_arguments(args, tell)
    classes, estimate = _counted(args, problem)
    names = merge_concepts(_dictionary(args), problem.old)
    student, teacher = _sides(args, problem, names)
    kept, size = _kept(names, problem.old, teacher), len(names)
    names = [names[i] for i in kept]
    student, teacher = (side._replace(concepts=side.concepts[kept]) for side in (student, teacher))
    _files.write_text(args.out / "concepts.txt", "".join(f"{name}\n" for name in names))
    gcd = _train(args, problem, classes, student, teacher)
    gcd.save(args.out / "model.safetensors")
    found, proba = _classified(problem, student, names, gcd)
    table = discovery_output.assignments(found, problem.paths, problem.labels, proba)
    discovery_output.write_assignments(args.out / "assignments.csv", table)
    new = [one for one in found if not one.old]
    written = ["assignments.csv", "report.md", "concepts.txt", "model.safetensors"]
    if new:
        written.insert(1, "sheet.html" if args.html else "sheet.png")
        discovery_output.write_sheet(args.out / written[1], new, problem.paths, proba, args.hits)
    accuracy = None if problem.truth is None else _accuracy(problem, problem.truth, gcd)
    facts = [
        *_facts(problem, len(new), classes, estimate),
        f"{len(names)} of {size} concepts; {gcd.epochs} epochs, seed {args.seed}; teacher: "
        + ("the student itself" if args.teacher is None else str(args.teacher)),
    ]
    if accuracy is not None:
        told = " / ".join(f"{100 * value:.1f}" for value in accuracy)
        facts.append(f"All / Old / New on the unlabelled images: {told} %")
    _files.write_text(args.out / "report.md", discovery_output.report(found, facts, estimate))
    return Discovered(args.out, table, found, classes, estimate, accuracy, facts, written)


def _classified(
    problem: Problem, student: _Side, names: list[str], gcd: SpectralGCD
) -> tuple[list[Found], Tensor]:  # .., [N, C]
    proba = gcd.predict_proba(problem.features)
    shown = torch.softmax(problem.features @ normalize(student.concepts, dim=1).T / gcd.temperature, dim=1)
    found = discovery_output.classes(
        gcd.classes_.tolist(), len(gcd.old_classes_), proba, shown, names, problem.labels
    )
    return found, proba


def _facts(problem: Problem, new: int, classes: int, estimate: NumClassesEstimate | None) -> list[str]:
    labelled, old = sum(label is not None for label in problem.labels), len(problem.old)
    return [
        f"{len(problem.paths)} images, {labelled} of them labelled, of {old} old classes",
        *([] if estimate is None else [discovery_output.told_estimate(estimate)]),
        f"{new} of {classes - old} new classes have images",
    ]


def _accuracy(problem: Problem, truth: list[str], gcd: SpectralGCD) -> GCDAccuracy:
    """On the unlabelled drawings of an embedded set, whose classes are known."""
    hidden = [i for i, label in enumerate(problem.labels) if label is None]
    predicted = gcd.predict(problem.features[hidden]).tolist()
    return gcd_accuracy([truth[i] for i in hidden], predicted, problem.old)
