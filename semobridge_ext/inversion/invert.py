"""OTI and OVI: inversion into a frozen CLIP tower (arXiv 2502.04263; docs/methods.md §3 and §4).

    v ~ N(0, 0.02²)      minimise  mean_B(1 − cos(tower(v), f))  with AdamW

The text tower is frozen and causal, so most of a step is constant: positions after EOT do not matter, the
keys and values before the first pseudo-token never change, the last layer needs one row. The rest (2 rows
instead of 77 for "a photo of {}") runs forward and backward inside the core, or on a CUDA device as
launches that a graph repeats. The result equals that of the plain program to rounding;
docs/guides/inversion.md explains why and gives the costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.inversion.descent import Chunk, Elsewhere, catch_interrupt, run_chunk
from semobridge_ext.inversion.prepared import prepared
from semobridge_ext.inversion.settings import Settings, check_count, check_generator, check_settings
from semobridge_ext.inversion.spec import Inversion
from semobridge_ext.inversion.start import Start, identity_of
from semobridge_ext.inversion.store import Store, kept_batch_size
from semobridge_ext.inversion.targets import unit_targets
from semobridge_ext.runtime.plain_modes import plain_modes

__all__ = ["Inversion", "oti", "ovi"]

_CHUNK = 256  # samples a chunk where the engine does not say: Ctrl-C or a kill loses at most this much
_PATCH_CHUNK = 32  # ... of patches, fifty rows a sample: the same work as 800 texts


def initial(
    function: str,
    init: Any,
    generator: torch.Generator | None,
    targets: Tensor,  # [B, D] unit rows
    engine: TowerEngine,
    description: dict[str, Any],
) -> Tensor:
    """[B, R, T] on the CPU."""
    shape = (len(targets), engine.vectors, engine.width)
    if isinstance(init, Start):
        init._check(function, identity_of(function, description))
        return init._tokens(targets).to("cpu", engine.compute)
    if init is None:
        device = torch.device("cpu") if generator is None else generator.device
        drawn = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return (drawn * 0.02).to("cpu", engine.compute)
    init = _arrays.tensor(function, "init", init)
    _errors.check_float_tensor(function, "init", init)
    if tuple(init.shape) not in (shape, shape[1:]):
        contract = f"be [B, R, T] = {list(shape)} or {list(shape[1:])}"
        raise ValueError(_errors.message(function, "init", contract, init, "leave it out for N(0, 0.02²)"))
    return init.detach().to("cpu", engine.compute).expand(shape).clone()


def _gather(
    chunks: list[Chunk], settings: Settings, interrupted: bool, device: torch.device, engine: str
) -> Inversion:
    losses = torch.cat([c.losses for c in chunks], 1)
    recorded = torch.cat([c.recorded for c in chunks], 1).to(device)
    return Inversion(
        tokens=torch.cat([c.tokens for c in chunks]).to(device),
        features=torch.cat([c.features for c in chunks]).to(device),
        losses=losses.nanmean(1).to(device),
        recorded={s: recorded[i] for i, s in enumerate(settings.record_steps)},
        steps_done=torch.cat([c.steps_done for c in chunks]),
        interrupted=interrupted,
        engine=engine,
    )


def _chunk(function: str, engine: TowerEngine, batch_size: int | None, out: str | Path | None) -> int:
    """Samples a chunk."""
    if batch_size is not None:
        return check_count(function, "batch_size", batch_size, 1)
    by_memory = engine.chunk()
    if by_memory is None:
        return _PATCH_CHUNK if function == "ovi" else _CHUNK
    # Free memory differs from run to run: a run that was killed goes on with the chunks that it began.
    return (None if out is None else kept_batch_size(function, out)) or by_memory


def invert_rows(
    function: str,
    engine: TowerEngine,
    feats: Any,  # [B, D]
    name: str,
    settings: Settings,
    init: Any,
    generator: torch.Generator | None,
    batch_size: int | None,
    progress: bool,
    out: str | Path | None,
    description: dict[str, Any],
    elsewhere: Elsewhere | None = None,
) -> Inversion:
    """What `oti` and `ovi` do once the tower is read; `name` is the argument that `feats` were.

    `elsewhere` makes the chunks, in their order, in place of this process.
    """
    check_generator(function, generator)
    targets = unit_targets(function, name, feats, engine.dim, engine.compute, description["tower"].device)
    tokens = initial(function, init, generator, targets, engine, description)
    if isinstance(init, Start):
        description = {**description, "start": init._mark}
    size = _chunk(function, engine, batch_size, out)
    store = None if out is None else Store(function, out, settings, description, targets, tokens, size)
    chunks, interrupted = [] if store is None else store.finished(), False
    if chunks and store is not None:
        store.remove_left()
    if not chunks:
        with nullcontext() if store is None else store.held():
            chunks = [] if store is None else store.finished()  # by a run that held it until now
            if not chunks:
                chunks, interrupted = _run(
                    function, engine, targets, tokens, settings, size, progress, store, elsewhere
                )
    found = _gather(chunks, settings, interrupted, targets.device, engine.kind)
    return found.as_arrays() if _arrays.is_array(feats) else found


def _run(
    function: str,
    engine: TowerEngine,
    targets: Tensor,  # [B, D] unit rows
    tokens: Tensor,  # [B, R, T]
    settings: Settings,
    size: int,
    progress: bool,
    store: Store | None,
    elsewhere: Elsewhere | None,
) -> tuple[list[Chunk], bool]:
    """The chunks, those of an earlier run read from the store, and whether Ctrl-C came."""
    batch, device, chunks = len(targets), targets.device, []  # type: int, torch.device, list[Chunk]
    bar = None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=batch * settings.steps, unit="step", unit_scale=True, desc=function)

    def advance(count: int, losses: Tensor) -> None:
        if bar is not None:
            bar.update(count)
            bar.set_postfix(loss=f"{float(losses.nanmean()):.4f}", refresh=False)

    begins = range(0, max(batch, 1), size)
    # The mean over the whole batch, whatever the chunk: splitting changes nothing.
    scale = 1.0 / max(batch, 1)

    def parts() -> Iterator[tuple[Tensor, Tensor]]:
        """Start values and targets of the chunks that are not on disk."""
        for begin in begins:
            if store is None or not store.has(begin // size):
                yield tokens[begin : begin + size], targets[begin : begin + size]

    with catch_interrupt() as interrupt:
        made = None if elsewhere is None else elsewhere(parts(), scale, interrupt)
        for begin in begins:
            chunk = None if store is None else store.load(begin // size)
            if chunk is None:
                if made is not None:
                    chunk = next(made, None)
                    if chunk is None:  # interrupted
                        break
                    advance(chunk.losses.numel(), chunk.losses[-1:])
                else:
                    rows = slice(begin, begin + size)
                    own = tokens[rows].to(device, copy=True)
                    chunk = run_chunk(engine, own, targets[rows], settings, scale, interrupt, advance)
                if store is not None:
                    chunk = chunk.cpu()  # where chunks of an earlier run are read to
                    if not interrupt.asked:
                        store.save(begin // size, chunk)
            else:
                advance(chunk.losses.numel(), chunk.losses[-1:])
            chunks.append(chunk)
            if interrupt.asked:
                break
    if made is not None:
        made.close()
    if bar is not None:
        bar.close()
    if not chunks:  # stopped before anything came from elsewhere
        raise KeyboardInterrupt
    if store is not None and not interrupt.asked:
        store.finish(chunks)
    return chunks, interrupt.asked


@plain_modes()
def oti(
    model: Any,
    img_feats: Any,  # [B, D]
    *,
    tokenizer: Any = None,
    template: str = "a photo of {}",
    num_tokens: int = 1,
    steps: int = 150,
    lr: float = 2e-2,
    weight_decay: float = 0.01,
    init: Any = None,  # [B, R, T] or [R, T]
    generator: torch.Generator | None = None,
    record_steps: Sequence[int] = (),
    batch_size: int | None = None,
    progress: bool = False,
    patience: int | None = None,
    min_delta: float = 1e-4,
    weights: torch.dtype | None = None,
    compute: torch.dtype | None = None,
    out: str | Path | None = None,
) -> Inversion:
    """Textual inversion: pseudo-words whose text feature points at each image feature.

    ``min_v mean_B(1 − cos(text(template with v), f))``, AdamW, the text tower frozen.
    A tower that the engine cannot run is run by the model itself, with autograd: slower, the same call; a
    note says so, once (docs/guides/inversion.md).

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists.
        img_feats: [B, D] image features, any length (normalised here), any float dtype; a tensor or a NumPy
            array, on the CPU where the model is elsewhere, too.
        tokenizer: the model's; CLIP's own where the vocabulary is CLIP's.
        template: holds ``{}`` once; ``num_tokens`` pseudo-words take its place.
        steps, lr, weight_decay: of AdamW (betas 0.9 and 0.999, eps 1e-8); the paper's by default.
        init: [B, R, T] or [R, T] start values, or an :class:`InversionMap` of this model and template, which
            predicts them: a fraction of the steps does. Default N(0, 0.02²) from ``generator``.
        generator: of the start values; None takes torch's global one.
        record_steps: also keep the features after these many steps (the best step comes early).
        batch_size: samples a chunk: 256 (:func:`ovi`: 32) on a CPU; on a CUDA device 4096, less where rows
            are many or free memory is short (docs/engines/tower_descent.md). It does not change the result:
            samples are independent, and the 1/B of the mean is that of the whole batch.
        progress: a bar on stderr, counting sample-steps.
        patience, min_delta: a sample stops, and leaves the batch, once its loss has not fallen by
            ``min_delta`` for ``patience`` steps. This is checked every 10 steps.
        weights: dtype in which the packed weights are read. None is exact: float32, or float16 where
            every weight is a float16 number. torch.bfloat16 halves the bytes read and rounds each weight
            by up to 2⁻⁹ of it: worth it for one image at a time, not for batches. On a CUDA device it is the
            type of activations and products (None: float32); the learned rows, the statistics of norms and
            the loss stay float32.
        compute: torch.bfloat16 rounds weights and rows to bfloat16 before every product, whose sums stay
            float32. Recommended on a CUDA device, where it is ``weights=torch.bfloat16`` and runs on tensor
            cores; about 0.6 of the time on a CPU with AVX-512-BF16, refused on other CPUs. None is exact.
            What it changes after 150 steps stands in docs/engines/tower_descent.md.
        out: a file. Each finished chunk is written to ``<out>.parts`` at once and atomically. The same
            call after a kill continues; a call with another tower, features, start values, setting or
            version of the package is refused, and so is one while another run holds ``<out>.lock``.

    Returns:
        :class:`Inversion`: tokens [B, R, T], features [B, D] (unit rows), losses [steps],
        recorded {step: [B, D]}; arrays for features in an array. Ctrl-C returns what is finished,
        with ``interrupted`` set.

    Raises:
        TypeError: the model or the features are of another kind. NotImplementedError: the model is entered
            by no layer of token embeddings, or another engine was asked for (named). ValueError: widths,
            template or settings do not fit, a feature row holds NaN or infinity (named), ``init`` is the map
            of another model or template, or ``out`` is of another run (of both, what differs is named),
            damaged, or in use (by whom is named).

    Numerics: float32 (float64 for a float64 model), sums in a fixed order: a sample's result depends
        neither on its chunk nor on the number of threads. A zero row has no gradient and only
        decays. On a CUDA device float32 products follow torch's setting of TF32, and bits may depend on the
        chunk, since cuBLAS chooses its kernels by shape.

    Memory: twice the tower's matrices, kept while the model lives; about 0.25 MB a row of scratch for
        ViT-B/32 and at most 112 rows a thread, whatever B; 3·R·T numbers a sample of a chunk. On a CUDA
        device a copy of the matrices in ``weights`` unless that is their own type, and about 9·T numbers a
        layer for each row of a chunk (twice that without the kernels of a build with CUDA).

    Example:
        >>> import torch, open_clip, semobridge_ext as sb
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> model = open_clip.CLIP(16, vision, text)
        >>> inv = sb.oti(model, torch.randn(3, 16), steps=30, record_steps=(10,))
        >>> inv.tokens.shape, inv.features.shape, bool(inv.losses[-1] < inv.losses[0])
        (torch.Size([3, 1, 32]), torch.Size([3, 16]), True)

    Paper: Mistretta et al., Cross the Gap, ICLR 2025 (arXiv 2502.04263), §3.
    """
    name = "oti"
    settings = check_settings(name, steps, lr, weight_decay, record_steps, patience, min_delta, weights)
    num_tokens = check_count(name, "num_tokens", num_tokens, 1)
    engine, description = prepared(name, model, num_tokens, weights, compute, template, tokenizer)
    return invert_rows(
        name, engine, img_feats, "img_feats", settings, init, generator, batch_size, progress, out,
        description,
    )  # fmt: skip


@plain_modes()
def ovi(
    model: Any,
    txt_feats: Any,  # [B, D]
    *,
    num_patches: int = 1,
    steps: int = 1000,
    lr: float = 2e-2,
    weight_decay: float = 0.01,
    init: Any = None,  # [B, P, V] or [P, V]
    generator: torch.Generator | None = None,
    record_steps: Sequence[int] = (),
    batch_size: int | None = None,
    progress: bool = False,
    patience: int | None = None,
    min_delta: float = 1e-4,
    weights: torch.dtype | None = None,
    compute: torch.dtype | None = None,
    out: str | Path | None = None,
) -> Inversion:
    """Visual inversion: pseudo-patches whose image feature points at each text feature.

    ``min_v mean_B(1 − cos(image(v), t))``; patch u of U holds pseudo-patch ⌊u·P/U⌋ in place of the
    patch embedding, before the positional embedding.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, with a vision tower that starts
            from patches. ResNets are refused.
        txt_feats: [B, D] text features, any length, any float dtype; a tensor or a NumPy array.
        steps, lr, weight_decay: of AdamW, as in :func:`oti`.
        num_patches: P; the paper uses 1 (B/32), 2 (OpenCLIP L/14), 4 (CLIP L/14, SigLIP B/16).
        init, generator, record_steps, batch_size, progress, patience, min_delta, weights, compute, out:
            as in :func:`oti`.

    Returns:
        :class:`Inversion` with tokens [B, P, V].

    Raises:
        As :func:`oti`.

    Numerics: as :func:`oti`.

    Memory: as :func:`oti`; the scratch is that of at least one sample (all patches) a thread.

    Example:
        >>> import torch, open_clip, semobridge_ext as sb
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> model = open_clip.CLIP(16, vision, {"width": 32, "heads": 2, "layers": 1})
        >>> sb.ovi(model, torch.randn(2, 16), num_patches=2, steps=5).tokens.shape
        torch.Size([2, 2, 32])

    Paper: Mistretta et al., Cross the Gap, ICLR 2025 (arXiv 2502.04263), §3.
    """
    name = "ovi"
    settings = check_settings(name, steps, lr, weight_decay, record_steps, patience, min_delta, weights)
    num_patches = check_count(name, "num_patches", num_patches, 1)
    engine, description = prepared(name, model, num_patches, weights, compute)
    return invert_rows(
        name, engine, txt_feats, "txt_feats", settings, init, generator, batch_size, progress, out,
        description,
    )  # fmt: skip
