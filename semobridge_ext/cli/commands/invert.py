"""`semobridge-ext invert`: a file of features in, a file of pseudo-tokens and their features out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _digest
from semobridge_ext.cli import inverted_table, models
from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.engine import add_engine, cluster_of
from semobridge_ext.cli.inversion_input import picto_features, read_features, read_folder
from semobridge_ext.cli.output import Tell
from semobridge_ext.cli.results import Inverted
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.table_writer import open_writer
from semobridge_ext.cli.tables import holds_features, lance_library
from semobridge_ext.inversion.spec import Inversion

_DESCRIPTION = """\
Textual inversion (oti: image features in) or visual inversion (ovi: text features in). The result is
that of the published program; the work is a small part of it. Finished chunks are on disk at once:
the same command goes on after an interruption or a kill, and refuses to mix two different runs.
"""
_EPILOG = """\
files:
  input     .safetensors with a tensor 'features' [B, D] (--key names another), .npy, or .pt read with
            weights_only; a folder of shards, .parquet or .lance; or 'picto:icons' (also emoji, flags,
            logos, arrows): the embedded images
  output    .safetensors with tokens [B, R, T], features [B, D] (unit rows), losses [steps, B], recorded
            [records, B, D] in the order of --record-steps, steps_done [B] and the settings. With --format
            a folder that holds it as inversion.safetensors, and a table (features/part-00000.parquet or
            features.lance): features, tokens (R*T numbers a row), steps_done, the columns of the input
  map       .safetensors, what --pilots writes and --start reads: it predicts the start values, so well
            that a few steps do. It fits one model, template and --tokens

examples:
  semobridge-ext invert picto:icons icons-oti.safetensors --limit 1000
  semobridge-ext invert feats.safetensors out.safetensors --model ViT-B-32 --pretrained openai
  semobridge-ext invert feats.npy out.safetensors --template "a photo of {} in the wild" --tokens 2
  semobridge-ext invert picto:icons out.safetensors --pilots 300 --start map.safetensors --steps 3
  semobridge-ext invert more.npy more-out.safetensors --start map.safetensors --steps 3
  semobridge-ext invert feats/ inverted/ --format parquet
  semobridge-ext invert texts.npy out.safetensors --kind ovi --tokens 4 --steps 1000
"""
_WEIGHTS = {"exact": None, "bfloat16": torch.bfloat16}
_COMPUTE = _WEIGHTS  # the same words


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "invert",
        help="textual or visual inversion of a file of features, resumable",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="features, or picto:<set>")
    parser.add_argument("output", help="the file to write; with --format a folder")
    parser.add_argument("--format", choices=("safetensors", "parquet", "lance"), default="safetensors",
                        help="parquet, lance: a table beside it (default: safetensors)")  # fmt: skip
    parser.add_argument("--kind", choices=("oti", "ovi"), default="oti")
    parser.add_argument("--model", default="picto", help="open_clip model name; default: the embedded one")
    parser.add_argument("--pretrained", help="open_clip tag or checkpoint file of --model")
    parser.add_argument("--template", default="a photo of {}", help="oti: where the pseudo-tokens stand")
    parser.add_argument("--tokens", type=count, default=1, help="pseudo-tokens (ovi: pseudo-patches)")
    parser.add_argument("--steps", type=lambda w: count(w, 0), help="default 150, ovi 1000")
    parser.add_argument("--lr", type=float, default=2e-2)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--record-steps", type=lambda w: count(w, 0), nargs="*", default=[], metavar="STEP")
    parser.add_argument("--batch-size", type=count, help="samples a chunk: what a kill can lose")
    parser.add_argument("--patience", type=count, help="stop a sample after this many steps without gain")
    parser.add_argument("--weights", choices=tuple(_WEIGHTS), default="exact")
    parser.add_argument(
        "--compute", choices=tuple(_COMPUTE), default="exact",
        help="bfloat16: rows are rounded before each product; needs AVX-512-BF16",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the start values, and of the pilots")
    parser.add_argument("--start", metavar="MAP", help="oti: a map that predicts the start values")
    parser.add_argument(
        "--pilots",
        type=lambda w: count(w, 2),
        metavar="N",
        help="fit that map first, by inverting N rows and training on all of them, and write it to --start",
    )
    parser.add_argument("--limit", type=count, help="only the first so many rows")
    parser.add_argument("--key", default="features", help="tensor name in a .safetensors input")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_engine(parser)


def _write_table(
    args: argparse.Namespace,
    names: tuple[str, str | None],
    weights: str,
    folder: Folder | None,
    inv: Inversion,
) -> None:
    settings = {
        "command": "invert", "kind": args.kind, "model": names[0], "pretrained": names[1], "weights": weights,
        "features": f"inverted by {args.kind}", "normalized": True, "dtype": "float32",
        "inversion_digest": _digest.marked(_digest.digest([inv.tokens, inv.features, inv.steps_done])),
    }  # fmt: skip
    inverted_table.write(open_writer("invert", Path(args.output), args.format), inv, folder, settings)


def _check_start(args: argparse.Namespace) -> None:
    if args.kind == "ovi" and (args.start or args.pilots is not None):
        name, got = ("--start", args.start) if args.start else ("--pilots", args.pilots)
        raise ValueError(f"invert: {name} must stand beside --kind oti, got {got} with ovi; leave it out")
    if args.pilots is not None and args.start is None:
        raise ValueError(
            f"invert: --pilots must stand beside --start, got {args.pilots} alone; name the file that the "
            "map is written to"
        )


def _start(args: argparse.Namespace, model: Any, tokenizer: Any, feats: Tensor, tell: Tell) -> Any:
    """The map that predicts the start values: read, or fitted to pilots and written; None without."""
    from semobridge_ext.inversion.inversion_map import InversionMap

    if args.start is None:
        return None
    if args.pilots is None:
        return InversionMap.load(args.start)
    began = time.perf_counter()
    try:
        phi = InversionMap.fit(
            model, feats, pilots=args.pilots, num_tokens=args.tokens, template=args.template,
            tokenizer=tokenizer, lr=args.lr, weight_decay=args.weight_decay, weights=_WEIGHTS[args.weights],
            batch_size=args.batch_size, generator=torch.Generator().manual_seed(args.seed),
            progress=not args.quiet, out=args.start,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise _stopped(f"finished pilots are beside {args.start}") from None
    tell(f"{args.start}: {phi}, {time.perf_counter() - began:.1f} s")
    return phi


def _stopped(what_is_left: str) -> KeyboardInterrupt:
    return KeyboardInterrupt(f"stopped; {what_is_left}, the same command goes on from there")


def _on_cluster(
    args: argparse.Namespace, names: tuple[str, str | None], encoder: models.Encoder, feats: Tensor,
    init: Any, options: dict[str, Any], cluster: Any,
) -> Inversion:  # fmt: skip
    """What `oti` and `ovi` do, with the chunks made on a cluster."""
    from semobridge_ext.inversion.invert import invert_rows
    from semobridge_ext.inversion.prepared import prepared
    from semobridge_ext.inversion.settings import check_count, check_settings
    from semobridge_ext.ray.jobs import elsewhere

    kind, weights, compute = args.kind, options["weights"], options["compute"]
    steps = args.steps if args.steps is not None else {"oti": 150, "ovi": 1000}[kind]
    settings = check_settings(
        kind, steps, args.lr, args.weight_decay, options["record_steps"], args.patience, 1e-4, weights
    )
    vectors = check_count(kind, "--tokens", args.tokens, 1)
    engine, description = prepared(
        kind, encoder.model, vectors, weights, compute, args.template, encoder.tokenizer
    )
    chunks = elsewhere(
        kind, names, models.weights_digest(encoder.model), cluster, template=args.template, vectors=vectors,
        settings=settings, weights=weights, compute=compute,
    )  # fmt: skip
    return invert_rows(
        kind, engine, feats, "features", settings, init, options["generator"], args.batch_size,
        not args.quiet, options["out"], description, chunks,
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    try:
        found = perform(args, print)
    except KeyboardInterrupt as stopped:
        if not stopped.args:  # not one that says what is left
            raise
        print(stopped)
        return 130
    losses = found.inversion.losses
    last = f", loss {float(losses[-1]):.4f}" if len(losses) else ""
    print(f"{args.output}: {found.records} samples{last}, {found.seconds:.1f} s")
    return 0


def perform(args: argparse.Namespace, tell: Tell) -> Inverted:
    """The whole of the command but its last line; `tell` takes what it says on the way."""
    _check_start(args)
    cluster = cluster_of("invert", args)
    result, folder = args.output, None
    if args.format != "safetensors":
        open_writer("invert", Path(args.output), args.format)
        if args.format == "lance":
            lance_library("invert", f"write {args.output}")
        result = str(Path(args.output) / inverted_table.RESULT)
    names = models.resolve("invert", args.model, args.pretrained)
    encoder = models.load("invert", *names)
    if args.input.startswith("picto:"):
        feats = picto_features(args.input.removeprefix("picto:"), encoder.model, args.kind, args.limit)
    elif holds_features(args.input):
        folder, feats = read_folder(args.input, args.limit)
    else:
        feats = read_features(args.input, args.key)
    feats = feats[: args.limit]
    init = _start(args, encoder.model, encoder.tokenizer, feats, tell)
    began = time.perf_counter()
    inv = _inverted(args, names, encoder, feats, init, result, cluster)
    seconds = time.perf_counter() - began
    if inv.interrupted:
        raise _stopped(f"finished chunks are in {result}.parts")
    if args.format != "safetensors":
        _write_table(args, names, models.weights_digest(encoder.model), folder, inv)
    return Inverted(Path(args.output), len(inv.tokens), inv, seconds)


def _inverted(
    args: argparse.Namespace, names: tuple[str, str | None], encoder: models.Encoder, feats: Tensor,
    init: Any, result: str, cluster: Any,
) -> Inversion:  # fmt: skip
    """To the file `result`, here or on a cluster."""
    from semobridge_ext.inversion.invert import oti, ovi

    options: dict[str, Any] = {
        "lr": args.lr, "weight_decay": args.weight_decay, "record_steps": tuple(args.record_steps),
        "batch_size": args.batch_size, "patience": args.patience, "weights": _WEIGHTS[args.weights],
        "compute": _COMPUTE[args.compute], "generator": torch.Generator().manual_seed(args.seed),
        "progress": not args.quiet, "out": result,
    }  # fmt: skip
    if args.steps is not None:
        options["steps"] = args.steps
    if cluster is not None:
        return _on_cluster(args, names, encoder, feats, init, options, cluster)
    if args.kind == "ovi":
        return ovi(encoder.model, feats, num_patches=args.tokens, **options)
    return oti(
        encoder.model, feats, tokenizer=encoder.tokenizer, template=args.template, num_tokens=args.tokens,
        init=init, **options,
    )  # fmt: skip
