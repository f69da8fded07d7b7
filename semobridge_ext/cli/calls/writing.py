"""`extract` and `map_shards`: what the commands `extract` and `map` do, from Python."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from semobridge_ext import _errors
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli.calls.as_files import listed
from semobridge_ext.cli.calls.words import Call
from semobridge_ext.cli.commands import extract as extract_command
from semobridge_ext.cli.commands import mapping as map_command
from semobridge_ext.cli.images import PIXELS
from semobridge_ext.cli.results import Extracted, Mapped
from semobridge_ext.cli.tar_members import MEMBER_BYTES
from semobridge_ext.cli.tar_streams import UNPACKED_BYTES
from semobridge_ext.linear_maps import IsoCLIP, LinearMap, RoleCentering

EXTRACT = Call("extract", "extract", extract_command, {"input": "source", "dataset": "source"}, {})
_OTHERS = {"SHARDS": "shards", "--before-projection": "before_projection=True"}
MAP = Call("map_shards", "map", map_command, {"input": "shards"}, _OTHERS)
# The name that `map` gives each kind; a subclass is one of its kind.
_FITTED = {Bridge: "bridge", IsoCLIP: "isoclip", LinearMap: "linear map", RoleCentering: "centering"}


_tell = logging.getLogger("semobridge_ext").info  # what a command says on stderr


def extract(
    source: Any,
    out: Any,
    *,
    model: str,
    pretrained: Any = None,
    device: str = "cpu",
    batch_size: int = 128,
    workers: int = 0,
    dtype: str = "float16",
    format: str = "shards",
    shard_size: int = 10000,
    label: str = "parent",
    path_column: str | None = None,
    captions: bool = False,
    caption_column: str | None = None,
    normalize: bool = False,
    before_projection: bool = False,
    max_pixels: int = PIXELS,
    max_member_bytes: int = MEMBER_BYTES,
    max_tar_bytes: int = UNPACKED_BYTES,
    root: Any = None,
    download: bool = False,
    split: Any = None,
    engine: str = "local",
    address: str | None = None,
    actors: int | None = None,
    progress: bool = False,
) -> Extracted:
    """Image features of a CLIP model in shards on disk, as ``semobridge-ext extract`` writes them, resumable.

    The layout is clip-retrieval's: ``out/img_emb/img_emb_0.npy`` beside ``out/metadata/metadata_0.parquet``,
    row by row. What cannot be decoded is counted and listed in ``out/corrupt.tsv``, and stops nothing. The
    same call goes on after a kill or Ctrl-C, from the last whole shard; a finished folder stays as it is.
    `encode_images` gives the features in memory instead.

    Args:
        source: a folder of images, a list file, a .csv, a .tar or its brace pattern, or a data set by name
            ("torchvision:DTD", "hf:OWNER/NAME").
        out: the folder to write; made if absent.
        model: an open_clip name, completed from its list, "hf-hub:OWNER/NAME", "local-dir:FOLDER" or
            "picto", the embedded CLIP, which knows drawings. A name, so that `search` and `map_shards` can
            load the model again.
        pretrained: open_clip's tag or a checkpoint file of that model.
        device: where the model runs: "cpu", "cuda", "cuda:1" ..
        batch_size: images encoded at once.
        workers: processes that decode; 0 decodes in this one.
        dtype: of the stored rows, "float16" or "float32".
        format: "shards"; or "parquet", "lance": ``out`` holds a table in place of shards, which every
            function that takes shards reads too.
        shard_size: inputs a shard: what a kill can lose.
        label: of a folder, which one names the class: "parent" of the image, the "first" below ``source``, or
            "none".
        path_column: where a .csv has its paths; None: its usual names.
        captions: encodes captions too, into ``out/text_emb``, row by row with the images; an image without
            one is left out and counted as corrupt.
        caption_column: where a .csv or a data set by name has them; None: "caption".
        normalize: stores unit rows in place of raw ones.
        before_projection: stores what the image projection is applied to, for ``mapping="isoclip"``.
        max_pixels: larger images are skipped and listed.
        max_member_bytes: of tars, larger members are skipped and listed.
        max_tar_bytes: compressed tars are unpacked no further.
        root: the folder in which data sets by name lie.
        download: fetches a data set that is not there into ``root``.
        split: a split file of CoOp's form: train, val and test.
        engine: "local", or "ray" for the actors of a Ray cluster, which write the same files.
        address: of the cluster.
        actors: how many; None: one a CPU or GPU.
        progress: a bar on stderr.

    Returns:
        A named tuple: ``path`` of the folder, ``records`` in its shards, ``corrupt`` inputs, ``inputs``,
        ``ignored`` files that are no images by their names, ``resumed_at``, the inputs that were done when
        the last run began, its ``seconds``, ``finished_already``: this call found nothing to do, and
        ``without_caption``, of the corrupt ones.

    Raises:
        ValueError: no images, a name of no model (with near matches), a folder made with other settings, from
            files that were replaced since, or by another run at work. TypeError: an argument of another kind.
            FileNotFoundError: no such source. RuntimeError: a model that does not load.
            NotImplementedError: a source that is not local. ImportError: pyarrow is missing.

    Numerics: the model's own forward pass in evaluation mode, rounded once to ``dtype``. A row that is not
        finite in it counts as corrupt.

    Memory: a batch of pixels, with ``workers`` two batches each beside it, and one shard of rows; it does not
        grow with the number of images.

    Example:
        >>> import tempfile, numpy as np, semobridge_ext as sb
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as home:
        ...     for i in range(3):
        ...         Image.fromarray(np.full((48, 48, 3), 80 * i, np.uint8)).save(f"{home}/{i}.png")
        ...     found = sb.extract(home, f"{home}/feats", model="picto", label="none")
        >>> found.records, found.corrupt
        (3, 0)
    """
    if model is None:  # the command takes the embedded CLIP then, and says that it knows drawings
        contract, remedy = "be a name", "pass 'picto' for the embedded CLIP"
        raise TypeError(_errors.message("extract", "model", contract, model, remedy))
    args = EXTRACT.arguments(
        progress, input=source, out=out, model=model, pretrained=pretrained, device=device,
        batch_size=batch_size, workers=workers, dtype=dtype, format=format, shard_size=shard_size,
        label=label, path_column=path_column, captions=captions, caption_column=caption_column,
        normalize=normalize, before_projection=before_projection,
        max_pixels=max_pixels, max_member_bytes=max_member_bytes, max_tar_bytes=max_tar_bytes, root=root,
        download=download, split=split, engine=engine, address=address, actors=actors,
    )  # fmt: skip
    with EXTRACT.own_words():
        return extract_command.perform(args, _tell)


def map_shards(
    shards: Any,
    out: Any,
    *,
    mapping: Any,
    dtype: str = "float16",
    format: str = "shards",
    atol: float | None = None,
    components: int | None = None,
    texts: Any = None,
    template: str | None = None,
    fit: Any = None,
    onto: Any = None,
    center: bool = False,
    k_top: int | None = None,
    k_bottom: int | None = None,
    published: str | None = None,
    compress: bool = False,
    engine: str = "local",
    address: str | None = None,
    actors: int | None = None,
    progress: bool = False,
) -> Mapped:
    """A mapping applied to every row of shards, written as shards, as ``semobridge-ext map`` does, resumable.

    Unit rows, the same order, the same metadata; texts, where there are some, through their side of the
    mapping. The same call goes on after a kill or Ctrl-C, from the last whole shard, and refuses shards or a
    mapping that have changed since. ``out/mapping.safetensors`` is the mapping itself: `search` sends its
    queries through it.

    Args:
        shards: a folder of `extract`, a .parquet file or a folder of them, or a .lance data set. A mapping by
            name needs to know the model, and so a folder of `extract`.
        out: the folder to write; made if absent.
        mapping: a fitted `Bridge`, `IsoCLIP`, `LinearMap` or `RoleCentering`, the file that its ``save``
            wrote, or a name: "bridge", "centering", "isoclip", "pca", "procrustes".
        dtype: of the stored rows, "float16" or "float32".
        format: "shards"; or "parquet", "lance": ``out`` holds a table in place of shards.
        atol: bridge: singular values up to it are dropped; None: 0.3.
        components: pca: the number of directions; None: half the width.
        texts: pca, centering: a list, or a file with one text a line; None: the class names of ``shards``.
        template: pca, centering: what stands around a class name; None: "a photo of {}".
        fit: centering, procrustes: the shards to fit on; None: ``shards``.
        onto: procrustes: another model's shards of the same images.
        center: procrustes: fitted to centred rows, with an offset.
        k_top: isoclip: leading directions that are cut.
        k_bottom: isoclip: trailing directions that are cut.
        published: isoclip: the model whose published cuts are taken.
        compress: isoclip: narrow rows with the same ranking.
        engine: "local", or "ray" for the actors of a Ray cluster, which write the same files.
        address: of the cluster.
        actors: how many; None: one a CPU.
        progress: a bar on stderr.

    Returns:
        A named tuple: ``path`` of the folder, ``records`` in its shards, ``mapping``, its name, ``options``,
        what it says of itself, ``resumed_at``, the shards that were done when the last run began, its
        ``seconds``, and ``finished_already``: this call found nothing left to do.

    Raises:
        ValueError: an option that the mapping does not read, rows of another kind or width, a file that holds
            no mapping, a folder made with other settings or by another run at work. TypeError: an argument of
            another kind. FileNotFoundError: no such shards. ImportError: pyarrow is missing.

    Numerics: rows are mapped in float32, have unit length, and are rounded once to ``dtype``. A zero row
        stays zero.

    Memory: 16 384 rows at a time and the metadata of one shard.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> shift = sb.LinearMap.centering(torch.full((4,), 0.5))
        >>> table = pa.table({"features": torch.eye(4).tolist(), "label": list("abcd")})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     pq.write_table(table, f"{home}/rows.parquet")
        ...     found = sb.map_shards(f"{home}/rows.parquet", f"{home}/centred", mapping=shift)
        ...     rows = sb.read_shards(f"{home}/centred").features
        >>> found.records, found.mapping, rows[0].tolist()
        (4, 'linear map', [0.5, -0.5, -0.5, -0.5])
    """
    with tempfile.TemporaryDirectory(prefix="semobridge-ext-") as place:
        file, lines = _stored(mapping, Path(place)), listed("map_shards", "texts", texts, Path(place))
        args = MAP.arguments(
            progress, input=shards, out=out, mapping=file, dtype=dtype, format=format, atol=atol,
            components=components, texts=lines, template=template, fit=fit, onto=onto, center=center,
            k_top=k_top, k_bottom=k_bottom, published=published, compress=compress, engine=engine,
            address=address, actors=actors,
        )  # fmt: skip
        with MAP.own_words({str(file): f"a fitted {type(mapping).__name__}"} if file is not mapping else {}):
            return map_command.perform(args, _tell)


def _stored(mapping: Any, place: Path) -> Any:
    """A fitted mapping as its file, which is what `map` takes; a name or a file as it is."""
    if isinstance(mapping, (str, os.PathLike)):
        return mapping
    name = next((name for kind, name in _FITTED.items() if isinstance(mapping, kind)), None)
    if name is None:
        contract = "be a name, a file, or a Bridge, IsoCLIP, LinearMap or RoleCentering"
        raise TypeError(_errors.message("map_shards", "mapping", contract, mapping, "pass one of these"))
    mapping.save(place / f"{name}.safetensors")
    return place / f"{name}.safetensors"
