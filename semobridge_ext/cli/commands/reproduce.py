"""`semobridge-ext reproduce`: a published protocol from images to its table, beside the published figures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from semobridge_ext import _files, _locks
from semobridge_ext.cli import models
from semobridge_ext.cli.arguments import add_problem, count
from semobridge_ext.cli.fewshot_store import Store
from semobridge_ext.cli.named import fetch
from semobridge_ext.cli.named.catalogue import ENTRIES, PREFIX
from semobridge_ext.cli.named.hugging_face import PREFIX as HUGGING_FACE
from semobridge_ext.cli.named.problem import Prepared, folder_name, prepare, templates_of, title
from semobridge_ext.cli.named.torchvision_set import known
from semobridge_ext.cli.output import has_matplotlib
from semobridge_ext.cli.reproduction import fewshot, output, prompts, retrieval
from semobridge_ext.cli.reproduction.published import PROTOCOLS, model_key
from semobridge_ext.cli.shard_files import arrow
from semobridge_ext.fewshot.study import reachable
from semobridge_ext.fewshot.study_estimators import Options

_DESCRIPTION = """\
Runs a published protocol end to end: encodes the images of data sets, tunes on validation images, tests
once, and prints our figures beside the published ones, with what is known of how these came about.
"""
_EPILOG = """\
protocols:
  semobridge, tip-adapter, gda    few shots of every class: accuracy by shots, mean over draws and data sets
  cross-the-gap, isoclip          retrieval among the test images of every data set: mAP, in both readings
  kdpl                            a context learned on half of the classes, tested on the others

A published figure stands beside ours where the paper has one for the same model and weights, and a dash
where it has none. It is a mean over the paper's data sets: compare it with a mean over the same ones.

--datasets: names of torchvision (DTD, OxfordIIITPet, ..), hf:OWNER/NAME, or folders and tars with labels;
without it, every data set of the papers that lies below --root. Nothing is fetched without --download.
Splits and draws are stated; --split takes CoOp's file for one data set.

output: OUT/report.html, reproduce.csv, .md and .png; OUT/features holds the encoded images. A killed run
goes on with the same command: extraction by shards, inversion by chunks, training of prompts by
checkpoints, everything else by draw. Other settings or images in the same folder are refused.

examples:
  semobridge-ext reproduce semobridge --root data/ --datasets DTD EuroSAT OxfordIIITPet --download
  semobridge-ext reproduce isoclip --root data/ --model ViT-L-14-quickgelu --pretrained openai
  semobridge-ext reproduce gda --root data/ --model picto --datasets DTD --shots 1 4 --seeds 1
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "reproduce",
        help="a published protocol from images to its table, beside the published figures",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("protocol", choices=list(PROTOCOLS), metavar="PROTOCOL", help=", ".join(PROTOCOLS))
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="default: what lies below --root")
    models.add_arguments(parser)
    parser.set_defaults(model=None)
    parser.add_argument("--teacher", metavar="NAME", help="kdpl: the larger model, as --model")
    parser.add_argument("--teacher-pretrained", metavar="TAG", help="kdpl: as --pretrained")
    add_problem(parser)
    parser.add_argument("--shots", type=count, nargs="+", metavar="K", help="default: the paper's")
    parser.add_argument("--seeds", type=count, metavar="N", help="draws of shots (default: 3)")
    parser.add_argument("--trials", type=count, default=1000, help="of the blend search (default: 1000)")
    text = "of the blend search (default: optuna, TPE as published)"
    parser.add_argument("--sampler", choices=("random", "optuna"), default="optuna", help=text)
    parser.add_argument("--steps", type=count, metavar="N",
                        help="of training or inversion, epochs of kdpl; default: the paper's")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: reproduce-PROTOCOL")


class _Run(NamedTuple):
    """What all data sets of a run share."""

    args: argparse.Namespace
    names: tuple[str, str | None]
    encoder: models.Encoder
    teacher: prompts.Teacher | None
    store: Store


def spec_of(word: str) -> str:
    """A data set as the user named it, in full; refused with near matches."""
    local = word.lower().endswith((".tar", ".tgz", ".tar.gz", ".csv")) or os.path.isdir(word)
    if word.startswith(HUGGING_FACE) or (local and word not in ENTRIES):
        return word
    one = known("reproduce", word)
    return f"{PREFIX}{one.name}" + (f"[{','.join(one.parts)}]" if one.parts else "")


def _specs(args: argparse.Namespace) -> list[str]:
    """The data sets, all of them there before anything is encoded."""
    if args.datasets:
        specs = list(dict.fromkeys(spec_of(word) for word in args.datasets))
    elif args.root is None:
        raise ValueError("reproduce: --root must say where data sets lie, got none; pass --root FOLDER")
    else:
        specs = [f"{PREFIX}{name}" for name in ENTRIES if not fetch.lacking(name, args.root)]
        if not specs:
            raise FileNotFoundError(
                f"reproduce: --root must hold one of {', '.join(ENTRIES)}, got none in {args.root}; check "
                "the folder, or name some with --datasets and pass --download"
            )
    if args.split is not None and len(specs) > 1:
        raise ValueError(
            f"reproduce: --split must stand with one data set, got {len(specs)}; run them one by one"
        )
    if args.prompts is not None and len(specs) > 1:
        raise ValueError(
            f"reproduce: --prompts must stand with one data set, got {len(specs)}; run them one by one"
        )
    for spec in specs:
        if spec.startswith(PREFIX):
            if args.root is None:
                raise ValueError(
                    f"reproduce: --root must say where data sets lie, got none for {spec}; pass --root FOLDER"
                )
            fetch.ensure("reproduce", known("reproduce", spec).name, args.root, args.download)
    return specs


def _model(name: str | None, tag: str | None, usual: tuple[str, str]) -> tuple[str, str | None]:
    """What is asked for, or what the paper used."""
    if name is None:
        name, tag = usual[0], tag or usual[1]
    return models.resolve("reproduce", name, tag)


def run(args: argparse.Namespace) -> int:
    arrow("reproduce")
    if not has_matplotlib():
        raise ImportError(
            "reproduce: matplotlib must be installed, got none; pip install 'semobridge-ext[cli]'"
        )
    args.out = args.out or Path(f"reproduce-{args.protocol}")
    if args.out.is_file():
        raise ValueError(f"reproduce: --out must be a folder, got the file {args.out}; choose another name")
    protocol = PROTOCOLS[args.protocol]
    args.shots = sorted(set(args.shots or protocol.shots)) if protocol.shots else []
    args.seeds = (args.seeds or protocol.seeds) if protocol.shots else 1
    if args.protocol == "semobridge" and args.sampler == "optuna" and find_spec("optuna") is None:
        raise ImportError(
            "reproduce: optuna must be installed to search as published, got none; "
            "pip install 'semobridge-ext[search]', or pass --sampler random"
        )
    specs = _specs(args)
    names = _model(args.model, args.pretrained, protocol.model)
    args.out.mkdir(parents=True, exist_ok=True)
    with _locks.held("reproduce", "--out", args.out, args.out / ".lock"):
        store = Store(args.out / "results.jsonl", "reproduce", protocol.measures)
        encoder = models.load("reproduce", *names, args.device)
        return _run(_Run(args, names, encoder, _teacher(args), store), specs)


def _teacher(args: argparse.Namespace) -> prompts.Teacher | None:
    usual = PROTOCOLS[args.protocol].teacher
    if not usual:
        if args.teacher is not None:
            raise ValueError(f"reproduce: --teacher must stand with kdpl, got {args.protocol}; leave it out")
        return None
    names = _model(args.teacher, args.teacher_pretrained, usual)
    return prompts.Teacher(names, models.load("reproduce", *names, args.device), ())


def _run(study: _Run, specs: list[str]) -> int:
    args = study.args
    records: list[output.Record] = []
    notes: list[str] = []
    for spec in specs:
        prepared = prepare("reproduce", spec, args, study.names, study.encoder, args.out / "features")
        notes += prepared.notes
        print("\n".join(prepared.notes), file=sys.stderr)
        records += _records(study, spec, prepared)
    name, tag = study.names
    words = name if tag is None else f"{name} ({tag})"
    finished = output.Study(args.protocol, words, model_key(name, tag), notes, _settings(study), records)
    rows = output.write(args.out, finished)
    print(output.table_text(finished, rows))
    print(f"\nwritten: {args.out}: report.html, reproduce.csv, reproduce.md, reproduce.png")
    return 0


def _steps(args: argparse.Namespace) -> int | None:
    return args.steps or PROTOCOLS[args.protocol].steps


def _settings(study: _Run) -> list[str]:
    args = study.args
    told = [f"model {study.names[0]}" + (f", weights {study.names[1]}" if study.names[1] else "")]
    if study.teacher is not None:
        told.append(f"teacher {study.teacher.names[0]}, weights {study.teacher.names[1] or 'its own'}")
    if args.shots:
        told.append(f"{args.seeds} draws of shots, seeds from 0")
    if args.protocol == "semobridge":
        told.append(f"{args.trials} trials, {args.sampler}; {args.steps or 5000} training steps")
    elif _steps(args):
        told.append(f"{_steps(args)} {'epochs' if args.protocol == 'kdpl' else 'steps'}")
    if args.prompts is not None:
        told.append(f"prompts of {args.prompts.name}")
    return told


def _records(study: _Run, spec: str, prepared: Prepared) -> Iterator[output.Record]:
    """Of one data set, draw by draw; finished draws are read."""
    args, store, problem = study.args, study.store, prepared.problem
    weights = {"weights": models.weights_digest(study.encoder.model)}
    reached = reachable(problem.train[1], args.shots or [1])
    episodes = [(k, seed) for k in reached for seed in range(args.seeds)]
    run: Callable[[int, int], list[output.Record]]
    if args.protocol in fewshot.METHODS:
        options = Options(args.trials, args.sampler, "paper", args.steps)
        facts: dict[str, Any] = {**options._asdict(), "methods": list(fewshot.METHODS[args.protocol])}

        def run(shots: int, seed: int) -> list[output.Record]:
            return fewshot.episode(args.protocol, prepared, options, shots, seed)

    elif args.protocol == "kdpl":
        assert study.teacher is not None
        templates = tuple(args.template or templates_of(spec))
        teacher = study.teacher._replace(templates=templates)
        shown: Tensor = prompts.teacher_rows(spec, args, teacher, prepared, args.out / "features")
        epochs = int(_steps(args) or 0)
        facts = {
            "epochs": epochs, "teacher": models.weights_digest(teacher.encoder.model),
            "teacher features": shown, "templates": list(templates), "names": prepared.names,
        }  # fmt: skip

        def run(shots: int, seed: int) -> list[output.Record]:
            where = args.out / "checkpoints"
            draw = shots, seed
            return prompts.episode(prepared, study.encoder, teacher, shown, epochs, draw, where)

    else:
        steps = int(_steps(args) or 0)
        facts, episodes = {"steps": steps, "names": prepared.names}, [(0, 0)]
        key = model_key(*study.names)
        inversions = args.out / "inversions" / f"{folder_name(spec)}.safetensors"

        def run(shots: int, seed: int) -> list[output.Record]:
            given = args.protocol, prepared, study.encoder, key, steps, inversions, args.quiet
            return retrieval.records(*given)

    done = store.open(problem, {"protocol": args.protocol, **weights, **facts})
    for k, seed in _progress(episodes, title(spec), args.quiet):
        if (k, seed) not in done:
            done[k, seed] = run(k, seed)
            store.add(problem, k, seed, done[k, seed])
            _forget(args.out / "checkpoints")
        yield from done[k, seed]


def _progress(episodes: list[tuple[int, int]], name: str, quiet: bool) -> Any:
    from tqdm import tqdm

    return tqdm(episodes, desc=name, disable=quiet or None, leave=False)


def _forget(checkpoints: Path) -> None:
    """Removes the checkpoints of a draw whose records are written."""
    for path in checkpoints.glob("*.safetensors") if checkpoints.is_dir() else ():
        path.unlink()
    if checkpoints.is_dir():
        _files.remove_leftovers(checkpoints)
