"""`invert_shards`: what the command `invert` does, from Python."""

from __future__ import annotations

import logging
from typing import Any

from semobridge_ext import _errors
from semobridge_ext.cli.calls.words import Call
from semobridge_ext.cli.commands import invert as invert_command
from semobridge_ext.cli.results import Inverted

_OTHERS = {"input": "shards", "output": "out"}
INVERT = Call("invert_shards", "invert", invert_command, {"input": "shards", "output": "out"}, _OTHERS)


def invert_shards(
    shards: Any,
    out: Any,
    *,
    model: str,
    pretrained: Any = None,
    kind: str = "oti",
    format: str = "safetensors",
    template: str = "a photo of {}",
    tokens: int = 1,
    steps: int | None = None,
    lr: float = 2e-2,
    weight_decay: float = 0.01,
    record_steps: Any = (),
    batch_size: int | None = None,
    patience: int | None = None,
    weights: str = "exact",
    compute: str = "exact",
    seed: int = 0,
    start: Any = None,
    pilots: int | None = None,
    limit: int | None = None,
    key: str = "features",
    engine: str = "local",
    address: str | None = None,
    actors: int | None = None,
    progress: bool = False,
) -> Inverted:
    """Inversion of stored features into a file or a table, as ``semobridge-ext invert`` has it, resumable.

    The same call goes on after a kill or Ctrl-C, from the last whole chunk, and refuses to mix two different
    runs. `oti` and `ovi` invert features in memory, with a model in memory.

    Args:
        shards: a folder of `extract` or clip-retrieval, a .parquet file or a folder of them, a .lance data
            set; or a file of features [B, D]: .safetensors, .npy or .pt (read with weights_only). Image
            features for ``kind="oti"``, text features for "ovi". "picto:icons" (emoji, flags, logos,
            arrows): drawings that are embedded in the package.
        out: the .safetensors file to write; with ``format`` a folder.
        model: an open_clip name, completed from its list, "hf-hub:OWNER/NAME", "local-dir:FOLDER" or
            "picto", the embedded CLIP: the one that made the features.
        pretrained: open_clip's tag or a checkpoint file of that model.
        kind: "oti", textual inversion, or "ovi", visual inversion.
        format: "safetensors"; or "parquet", "lance": ``out`` is a folder that holds a table beside
            inversion.safetensors, with the columns of ``shards``.
        template: oti: holds ``{}`` once, where the pseudo-words stand.
        tokens: R, pseudo-words of an image; for ovi P, pseudo-patches.
        steps: of AdamW; None: 150, ovi 1000.
        lr, weight_decay: of AdamW.
        record_steps: also keeps the features after these many steps.
        batch_size: samples a chunk: what a kill can lose. None: as `oti` has it.
        patience: stops a sample after so many steps without gain.
        weights: "exact" or "bfloat16", in which the matrices are read; as `oti` has it.
        compute: "exact" or "bfloat16", to which rows and matrices are rounded before each product.
        seed: of the start values and of the pilots.
        start: oti: the file of an `InversionMap`, which predicts the start values.
        pilots: oti: fits that map first, by inverting so many rows and training on all, and writes it to
            ``start``.
        limit: only the first so many rows.
        key: the name of the tensor in a .safetensors file.
        engine: "local", or "ray" for the actors of a Ray cluster, which write the same file.
        address: of the cluster.
        actors: how many; None: one a CPU.
        progress: a bar on stderr.

    Returns:
        A named tuple: ``path`` of the file or folder, ``records``, how many rows were inverted,
        ``inversion``, the `Inversion` that the file holds, and its ``seconds``.

    Raises:
        ValueError: rows that are not finite or of another width than the model's, a damaged file, a map of
            another model, an ``out`` of another run or in use by one. TypeError: an argument of another
            kind. FileNotFoundError: no such file. RuntimeError: a model that does not load.
            NotImplementedError: a model without a tower to invert. ImportError: pyarrow, or for Lance
            pylance, is missing. KeyboardInterrupt: after Ctrl-C; what is finished stays.

    Numerics: those of `oti` and `ovi` on the CPU: the same bits as the command, whatever ``batch_size``.

    Memory: the rows in float32, the result, and twice the matrices of the tower.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as home:
        ...     save_file({"features": torch.ones(2, 192)}, f"{home}/x.safetensors")
        ...     given, out = f"{home}/x.safetensors", f"{home}/out.safetensors"
        ...     found = sb.invert_shards(given, out, model="picto", steps=5)
        >>> found.records, found.inversion.tokens.shape
        (2, torch.Size([2, 1, 192]))
    """
    if model is None:  # the command takes the embedded CLIP then
        contract, remedy = "be a name", "pass 'picto' for the embedded CLIP"
        raise TypeError(_errors.message("invert_shards", "model", contract, model, remedy))
    args = INVERT.arguments(
        progress, input=shards, output=out, model=model, pretrained=pretrained, kind=kind, format=format,
        template=template, tokens=tokens, steps=steps, lr=lr, weight_decay=weight_decay,
        record_steps=record_steps, batch_size=batch_size, patience=patience, weights=weights,
        compute=compute, seed=seed, start=start, pilots=pilots, limit=limit, key=key, engine=engine,
        address=address, actors=actors,
    )  # fmt: skip
    with INVERT.own_words():
        return invert_command.perform(args, logging.getLogger("semobridge_ext").info)
