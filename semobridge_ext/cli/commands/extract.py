"""`semobridge-ext extract`: images in, shards of features and their metadata out, resumable."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from semobridge_ext import _files
from semobridge_ext.cli import captions, models
from semobridge_ext.cli.arguments import add_input_dataset, add_max_pixels, count, place_of
from semobridge_ext.cli.captions import Captions
from semobridge_ext.cli.engine import add_engine, cluster_of, device_of
from semobridge_ext.cli.listing import CAPTION, first_difference
from semobridge_ext.cli.open_shard import OpenShard
from semobridge_ext.cli.output import Tell, bar_off, tell
from semobridge_ext.cli.results import Extracted
from semobridge_ext.cli.shard_files import arrow
from semobridge_ext.cli.shard_writer import Writer
from semobridge_ext.cli.sources import Source, keep, open_source
from semobridge_ext.cli.table_writer import add_format, open_writer
from semobridge_ext.cli.tar_members import MEMBER_BYTES
from semobridge_ext.cli.tar_streams import UNPACKED_BYTES

if TYPE_CHECKING:
    from semobridge_ext.cli.decode import Decoded

_DESCRIPTION = """\
Encodes images with a CLIP model. What cannot be decoded is counted and listed, and stops nothing.
Finished shards are on disk at once: the same command goes on after a kill (batch size, workers and
device may differ). A folder made with other settings or by another version, from files that were
replaced since, or with a damaged shard is refused, and one run writes it at a time. Memory does not
grow with the number of images.
"""
_EPILOG = """\
input:
  FOLDER            every image below it, sorted; files and folders whose name begins with a dot are left
                    out, in tars too; the folder that an image lies in is its class label
                    (--label first: the topmost folder; --label none: no labels)
  FILE.csv          a header; the path column is image_path, path, file .. or --path-column; the other
                    columns go along as text. Paths are relative to the file; a row without a path or with
                    other fields than the header has is refused, a repeated row is a repeated input
  FILE.tar          WebDataset, also 'part-{000..012}.tar' and 'part-*.tar'; .txt becomes caption, .cls
                    label. Links, devices, pipes, sparse and too large members are skipped and listed; a
                    compressed one (gzip, bzip2, xz) is read up to --max-tar-bytes unpacked
  any other file    a list, one path a line, relative to the file
  torchvision:DTD   a data set by name below --root, also DTD[test] or DTD[train,val]; columns label,
                    class_index and split. NAME is one of ImageNet, Caltech101, OxfordIIITPet, StanfordCars,
                    Flowers102, Food101, FGVCAircraft, SUN397, DTD, EuroSAT
  hf:OWNER/NAME     Hugging Face's, from --root/OWNER/NAME, also hf:OWNER/NAME[test]; needs datasets
                    Nothing is fetched without --download. --split takes CoOp's split files

images:
  What Pillow reads, AVIF among it, and HEIC with pillow-heif (semobridge-ext[heif]). The first frame,
  turned upright by EXIF. 16-bit grey is scaled by 1/257, float grey in [0, 1] by 255; other floats and
  integers are skipped and listed. Palettes, CMYK and transparency are the model's preprocessing's:
  open_clip's drops transparency, the embedded CLIP's lays images on white. Images of more than
  --max-pixels, strips beyond 1:256 and EPS are skipped; a JPEG of up to twice the limit is read at half
  its size.

captions (--captions):
  Of a folder and a list they are the .txt files beside the images (cat.jpg, cat.txt), of tars the .txt
  members, of a CSV the column caption, or --caption-column. They are encoded by the text tower, row by row
  with the images. An image without one has no row: it is counted and listed in corrupt.tsv.

output (the layout of clip-retrieval):
  OUT/img_emb/img_emb_0.npy           [n, D] raw rows of encode_image; --normalize gives the unit rows
                                      that clip-retrieval itself stores
  OUT/text_emb/text_emb_0.npy         with --captions: row i is the caption of row i of the images
  OUT/metadata/metadata_0.parquet     image_path, label ..: row i belongs to row i of the features
  OUT/features/part-00000.parquet     with --format parquet, in place of both: column features beside the
                                      others; a folder that any reader of Parquet data sets takes
  OUT/features.lance                  with --format lance; needs pylance (semobridge-ext[lance])
  OUT/corrupt.tsv                     what could not be decoded, and why; tabs, line breaks and
                                      backslashes in names as \\t, \\n, \\\\
  OUT/settings.json, summary.json     what was run; how many, how long
  OUT/inputs.jsonl, shards.jsonl      every input with its size and time; digests of the shards

examples:
  semobridge-ext extract photos/ feats/
  semobridge-ext extract photos/ feats/ --model vit-b-32 --pretrained laion2b_s34b_b79k --device cuda
  semobridge-ext extract list.txt feats/ --model ViT-B-16 --pretrained checkpoints/vitb16.pt
  semobridge-ext extract --dataset torchvision:DTD feats/ --root data/
  semobridge-ext extract 'shards/{00000..00099}.tar' feats/ --model hf-hub:OWNER/NAME --workers 8
  semobridge-ext extract photos/ feats/ --format parquet --dtype float32
  semobridge-ext extract photos/ hidden/ --before-projection      for map --mapping isoclip
  semobridge-ext extract 'laion/{00000..00009}.tar' feats/ --captions --model ViT-B-32 --pretrained openai
then: semobridge-ext map, search, retrieve, report
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "extract",
        help="features of a folder, list, CSV or tar of images, in shards; resumable",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", help="folder, list file, .csv, .tar (pattern) or data set")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards; made if absent")
    add_input_dataset(parser)
    models.add_arguments(parser)
    parser.add_argument("--batch-size", type=count, default=128, metavar="N", help="images (default: 128)")
    cores = min(8, len(os.sched_getaffinity(0)))
    text = f"decoding processes; 0: in this one (default here: {cores})"
    parser.add_argument("--workers", type=lambda w: count(w, 0), default=cores, metavar="N", help=text)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the shards")
    add_format(parser)
    parser.add_argument("--shard-size", type=count, default=10000, metavar="N",
                        help="inputs a shard: what a kill can lose (default: 10000)")  # fmt: skip
    parser.add_argument("--label", choices=("parent", "first", "none"), default="parent",
                        help="folders: which one names the class")  # fmt: skip
    parser.add_argument("--path-column", metavar="NAME", help="CSV: where the paths are")
    captions.add_arguments(parser)
    add_max_pixels(parser, "skipped")
    parser.add_argument("--max-member-bytes", type=count, default=MEMBER_BYTES, metavar="N",
                        help=f"tars: larger members are skipped (default: {MEMBER_BYTES})")  # fmt: skip
    parser.add_argument("--max-tar-bytes", type=count, default=UNPACKED_BYTES, metavar="N",
                        help=f"compressed tars: unpacked no further (default: {UNPACKED_BYTES})")  # fmt: skip
    parser.add_argument("--normalize", action="store_true", help="store unit rows")
    parser.add_argument("--before-projection", action="store_true",
                        help="store what the image projection is applied to")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_engine(parser)


def _escaped(text: str) -> str:
    """One field of corrupt.tsv: names may hold tabs and line breaks of every kind."""
    text = text.replace("\\", "\\\\")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _bar(args: argparse.Namespace, total: int | None, start: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=start, unit="image", desc="extract", disable=bar_off(args.quiet))


def _encoded(
    args: argparse.Namespace, source: Source, encoder: models.Encoder, names: Any, start: int
) -> Iterator[tuple[list[Decoded], np.ndarray]]:
    """Inputs from `start` on, a batch at a time, with the features of those that could be decoded."""
    cluster = cluster_of("extract", args, args.device)
    if cluster is not None:
        from semobridge_ext.ray.jobs import encoded

        yield from encoded(
            source, names, models.weights_digest(encoder.model), start, batch_size=args.batch_size,
            hidden=args.before_projection, max_pixels=args.max_pixels, cluster=cluster,
            device="cuda" if cluster.gpus else args.device,
        )  # fmt: skip
        return
    from semobridge_ext.cli.decode import batches

    loader = batches(
        source, encoder.preprocess, start, args.batch_size, args.workers, "cuda" in args.device,
        args.max_pixels,
    )  # fmt: skip
    for batch in loader:
        yield batch.inputs, models.rows_of(encoder, batch.pixels, args.device)


def _collect(folder: Writer) -> tuple[int, int, int, int]:
    """Writes corrupt.tsv from the shards; (inputs, features, corrupt, of these without a caption)."""
    inputs = rows = lost = bare = 0
    with _files.replaced(folder.path / "corrupt.tsv") as file:
        for index in folder.shards():
            taken, kept, corrupt = folder.counts(index)
            inputs, rows = inputs + taken, rows + kept
            for path, reason in corrupt:
                file.write(f"{_escaped(path)}\t{_escaped(reason)}\n".encode())
                lost, bare = lost + 1, bare + (reason == captions.MISSING)
    return inputs, rows, lost, bare


def _settings(args: argparse.Namespace, source: Any, encoder: models.Encoder, names: Any) -> dict[str, Any]:
    return {
        "command": "extract",
        "model": names[0],
        "pretrained": names[1],
        "weights": models.weights_digest(encoder.model),
        "preprocess": " ".join(str(encoder.preprocess).split()),
        "features": "before projection" if args.before_projection else "projected",
        "normalized": args.normalize,
        "dtype": args.dtype,
        "shard_size": args.shard_size,
        "max_pixels": args.max_pixels,
        **({"captions": args.caption_column or CAPTION} if args.captions else {}),
        **source.facts,
    }


def run(args: argparse.Namespace) -> int:
    print(told(perform(args, tell)))
    return 0


def perform(args: argparse.Namespace, tell: Tell) -> Extracted:
    """The whole of the command but its last line; `tell` takes what it says on the way."""
    arrow("extract")
    cluster_of("extract", args, args.device)
    captions.check_arguments("extract", args)
    names = models.resolve("extract", args.model, args.pretrained)
    if args.model is not None and names[0] != args.model:
        tell(f"model: {names[0]}")
    if args.out.is_file():
        raise ValueError(f"extract: OUT must be a folder, got the file {args.out}; choose another name")
    folder = open_writer("extract", args.out, args.format)
    folder.texts = args.captions
    with folder.claim():
        return _run(args, names, folder, tell)


def _begin(
    args: argparse.Namespace, names: tuple[str, str | None], folder: Writer
) -> tuple[Source, models.Encoder, int]:
    """Input and model, once the folder has accepted them, and the first shard to write.

    The listing stands under another name until then: a refused run leaves that of the finished one.
    """
    listing, staged = args.out / "inputs.jsonl", args.out / "inputs.jsonl.new"
    try:
        source = open_source(
            "extract", args.input, staged, label=args.label, column=args.path_column,
            max_member_bytes=args.max_member_bytes, max_tar_bytes=args.max_tar_bytes, place=place_of(args),
            captions=args.captions and args.caption_column in (None, CAPTION),
        )  # fmt: skip
        source = source._replace(columns=captions.columns_of("extract", args, source))
        encoder = models.load("extract", *names, device_of(args))
        settings = _settings(args, source, encoder, names)
        if args.before_projection:
            encoder = encoder.before_projection("extract")
        first = folder.begin(settings, lambda: first_difference(listing, staged))
        return keep(source, staged, listing), encoder, first
    finally:
        staged.unlink(missing_ok=True)


def _run(args: argparse.Namespace, names: tuple[str, str | None], folder: Writer, tell: Tell) -> Extracted:
    began = time.perf_counter()
    source, encoder, first = _begin(args, names, folder)
    if args.model is None:
        tell(models.NOTE)
    start, summary = _resume_at(folder, first, args.shard_size), folder.summary()
    if summary and summary["inputs"] == start:
        return Extracted.of_summary(args.out, summary, already=True)
    folder.reopen()
    if start:
        tell(f"{args.out}: {start} inputs are done, going on")
    texts = None
    if args.captions:
        texts = Captions(encoder, args.caption_column, np.dtype(args.dtype), args.normalize)
    shard = OpenShard(folder, first, args, source.columns, texts)
    done, ended = start, _is_last(folder, first, args.shard_size)
    with _bar(args, source.total, start) as bar:
        for inputs, found in () if ended else _encoded(args, source, encoder, names, start):
            rows = iter(found)
            for path, fields, _, reason in inputs:
                shard.add(path, fields, None if reason else next(rows), reason)
            done += len(inputs)
            bar.update(len(inputs))
    if shard.inputs:
        shard.flush()
    if not done:
        raise ValueError(f"extract: INPUT must hold images, got none in {args.input}; check it")
    total, kept, lost, bare = _collect(folder)
    if total != done or source.total not in (None, done):
        raise RuntimeError(
            f"extract: OUT must hold the {source.total or done} inputs that were listed, got {total} in the "
            f"shards of {args.out} and {done} read; something else wrote there: delete it and run again"
        )
    seconds = time.perf_counter() - began
    summary = {
        "inputs": done, "rows": kept, "corrupt": lost, "ignored": source.ignored,
        **({"without_caption": bare} if args.captions else {}),
        "resumed_at": start, "seconds": seconds, "images_per_second": (done - start) / seconds,
        "device": args.device, "batch_size": args.batch_size, "workers": args.workers,
    }  # fmt: skip
    folder.finish(summary)
    return Extracted.of_summary(args.out, summary, already=False)


def _resume_at(folder: Writer, first: int, size: int) -> int:
    """Inputs that the first shards account for; only the last shard of all may be short."""
    if not first:
        return 0
    return (first - 1) * size + folder.counts(first - 1)[0]


def _is_last(folder: Writer, first: int, size: int) -> bool:
    """Whether the run was killed between its last, short shard and the summary."""
    return first > 0 and _resume_at(folder, first, size) < first * size


def told(found: Extracted) -> str:
    """The last line of the command."""
    if found.finished_already:
        return f"{found.path}: finished already, {found.records} features"
    lost, seconds = found.corrupt, found.seconds
    bare = f", {found.without_caption} of them without a caption" if found.without_caption else ""
    corrupt = f"{lost} corrupt{bare} (listed in {found.path / 'corrupt.tsv'})" if lost else "none corrupt"
    other = f", {found.ignored} other files ignored" if found.ignored else ""
    rate = (found.inputs - found.resumed_at) / seconds if seconds else 0.0
    what = f"{found.records} features of {found.inputs} images"
    return f"{found.path}: {what}, {corrupt}{other}; {seconds:.1f} s, {rate:.0f} images/s"
