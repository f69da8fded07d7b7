"""Inversion by a learned start: some features are inverted, a ridge regression predicts the others' tokens.

    pilots f_i → tokens v_i by OTI        W, b = argmin Σ‖norm(f_i)·W + b − v_i‖² + λ‖W‖²
    start of any other feature:           norm(f)·W + b

The pilots then go on from what the map predicts for them, and the map is fitted to where that leads. Each
such round brings their tokens nearer to one linear map of the features: of the many tokens that have a
feature, those that a map can predict. docs/guides/learned_start.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _digest, _errors, _files, _schema
from semobridge_ext._engines.tower_descent.choice import make_engine
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.clip.towers import text_tower
from semobridge_ext.inversion.invert import invert_rows
from semobridge_ext.inversion.map_store import MapStore
from semobridge_ext.inversion.pilots import check_template, checked_ridge, drawn, too_few
from semobridge_ext.inversion.ridge import chosen
from semobridge_ext.inversion.settings import check_count, check_settings
from semobridge_ext.inversion.spec import Inversion
from semobridge_ext.inversion.start import Identity, Start, identity_of
from semobridge_ext.inversion.targets import unit_targets

FORMAT = "semobridge-ext inversion map 1"
_FILE = {
    "matrix": _schema.Field(("D", "M"), (torch.float64,)),
    "offset": _schema.Field(("R", "T"), (torch.float64,)),
}
_FIRST = 50  # pilots at least that are inverted from a cold start, where there are so many


class InversionMap(Start):
    """A linear map from image features to start tokens: ``sb.oti(model, f, init=phi)`` begins there.

    ``phi(f) = norm(f)·matrix + offset``. Make it with :meth:`fit`, :meth:`from_inversion` or :meth:`load`.

    Args:
        matrix: [D, R·T] float64, of a ridge regression.
        offset: [R, T] float64.
        identity: what the map belongs to, as a file keeps it; :func:`semobridge_ext.oti` refuses it
            elsewhere.
        ridge: that the regression had.
        held_out_loss: mean of 1 − cos of predicted tokens for pilots held out, None if ``ridge`` was given.

    Attributes:
        matrix, offset, identity, ridge, held_out_loss: as above. compute: dtype of the tokens.

    Raises:
        TypeError: no float tensors. ValueError: shapes do not fit, values are not finite, or ``identity`` is
            not of a map.

    Numerics: solved in float64 in closed form; applied in float32 (float64 for a float64 model) on the CPU,
        each row independent of its batch. Features are normalised; not differentiable. A zero row gets
        ``offset``.

    Memory: D·R·T values in float64, and a packed copy for calls.

    Example:
        >>> import torch, open_clip, semobridge_ext as sb
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> model = open_clip.CLIP(16, vision, text)
        >>> f = torch.randn(60, 16)
        >>> phi = sb.InversionMap.fit(model, f, pilots=40, steps=20, refine=(5,))
        >>> phi(f).shape, sb.oti(model, f, init=phi, steps=3).features.shape
        (torch.Size([60, 1, 32]), torch.Size([60, 16]))

    Pseudo-words of Mistretta et al., Cross the Gap, ICLR 2025 (arXiv 2502.04263).
    """

    def __init__(
        self,
        matrix: Tensor,  # [D, R·T]
        offset: Tensor,  # [R, T]
        identity: Identity,
        *,
        ridge: float,
        held_out_loss: float | None = None,
    ) -> None:
        self._set(matrix, offset, identity)
        self.ridge, self.held_out_loss = ridge, held_out_loss
        self._pilots: _digest.Stamp = {}

    @property
    def num_tokens(self) -> int:
        return self.offset.shape[0]

    def __repr__(self) -> str:
        width, (count, tokens) = len(self.matrix), self.offset.shape
        return f"InversionMap({width} → {count}×{tokens}, ridge {self.ridge:g})"

    # -- fitting -------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        model: Any,
        features: Tensor,  # [B, D]
        *,
        pilots: int = 1500,
        num_tokens: int = 1,
        template: str = "a photo of {}",
        tokenizer: Any = None,
        ridge: float | str = "auto",
        steps: int = 150,
        refine: Sequence[int] = (20, 20, 20),
        lr: float = 2e-2,
        weight_decay: float = 0.01,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        weights: torch.dtype | None = None,
        out: str | Path | None = None,
    ) -> InversionMap:
        """Inverts some of the features and fits the map to their tokens.

        Args:
            model: as in :func:`semobridge_ext.oti`, like num_tokens, template, tokenizer, lr, weight_decay,
                batch_size, progress and weights.
            features: [B, D] any length and float dtype; the pilots are drawn from the rows that are not zero.
            pilots: how many. A few hundred do; above D the regression is determined.
            ridge: λ of the regression in units of the mean eigenvalue of the features' covariance. "auto":
                among 10⁻⁴ … 10², by half powers of ten, the one whose predictions for a fifth of the pilots,
                held out, have the least loss through the tower; the map is then fitted to all of them.
            steps: of the first inversion. It starts all its pilots, a fifth of them but at least 50, at one
                row of N(0, 0.02²): start values of their own would be noise in the regression.
            refine: steps of each further round. All pilots start at what the map predicts for them, and the
                map is fitted again; () for none, and then ``steps`` are taken by all pilots.
            generator: of the draw and the first start values; None takes torch's global one.
            out: a file for the map. Pilots that are inverted are kept beside it until it is written: the same
                call after a kill goes on, after the end it reads the file, and a call with anything different
                is refused. Seed it with ``generator``.

        Returns:
            The map. Ctrl-C raises KeyboardInterrupt; what is finished stays with ``out``.

        Raises:
            As :func:`semobridge_ext.oti`; ValueError also: fewer than two rows that are not zero.
        """
        name = "InversionMap.fit"
        rounds = (steps, *refine)
        for count in refine:
            check_count(name, "refine", count, 1)
        settings = [check_settings(name, s, lr, weight_decay, (), None, 1e-4, weights) for s in rounds]
        check_count(name, "num_tokens", num_tokens, 1)
        check_count(name, "pilots", pilots, 2)
        number = checked_ridge(name, ridge)
        tower, rows = text_tower(model, template, num_tokens=num_tokens, tokenizer=tokenizer)
        engine = make_engine("oti", model, tower, rows, weights)
        description = {
            "template": template, "vectors": num_tokens, "weights": str(weights), "tower": tower,
            "rows": rows,
        }  # fmt: skip
        identity = identity_of("oti", description)
        targets = unit_targets(name, "features", features, engine.dim, engine.compute, tower.device)
        targets, first = drawn(name, targets, pilots, engine, generator)
        facts = {
            **identity, "ridge": ridge, "steps": list(rounds), "lr": lr, "weight_decay": weight_decay,
            "weights": str(weights), "pilots_digest": targets, "init_digest": first,
        }  # fmt: skip
        store = None
        if out is not None:
            store = MapStore(name, Path(out), _digest.stamp(facts), cls._read, lambda phi: phi._pilots)

        def invert(part: Tensor, index: int, start: Tensor) -> Tensor:  # [n, D] -> [n, R, T]
            found = invert_rows(
                name, engine, part, "features", settings[index], start, None, batch_size, progress,
                None if store is None else store.part(index), {**description, "round": index},
            )  # fmt: skip
            if found.interrupted:
                raise KeyboardInterrupt
            return found.tokens

        def run() -> InversionMap:
            every = max(1, min(5, len(targets) // _FIRST)) if refine else 1
            part = targets[::every]
            phi = cls._fitted(engine, part, invert(part, 0, first), number, identity)
            for index in range(1, len(rounds)):
                tokens = invert(targets, index, phi._tokens(targets))
                phi = cls._fitted(engine, targets, tokens, number, identity)
            if store is not None:
                phi._pilots = store.facts
            return phi

        if store is None:
            return run()
        return store.kept(run, lambda phi: phi.save(store.path))

    @classmethod
    def from_inversion(
        cls,
        model: Any,
        features: Tensor,  # [B, D]
        inversion: Inversion,
        *,
        template: str = "a photo of {}",
        tokenizer: Any = None,
        ridge: float | str = "auto",
    ) -> InversionMap:
        """Fits the map to an inversion that exists.

        Args:
            model, template, tokenizer: that the inversion was made with.
            features: [B, D] that were inverted, of any float dtype; zero rows are left out.
            inversion: what :func:`semobridge_ext.oti` returned for them.
            ridge: as in :meth:`fit`.

        Returns:
            The map, for as many tokens as the inversion has.

        Raises:
            As :meth:`fit`; ValueError also: the inversion has another number of rows, or its tokens do not
            lead to its features with this model and template.
        """
        name = "InversionMap.from_inversion"
        if not isinstance(inversion, Inversion):
            remedy = "pass what oti returned"
            raise TypeError(_errors.message(name, "inversion", "be an Inversion", inversion, remedy))
        number, tokens = checked_ridge(name, ridge), inversion.tokens
        count = tokens.shape[1]
        tower, rows = text_tower(model, template, num_tokens=count, tokenizer=tokenizer)
        engine = make_engine("oti", model, tower, rows, None)
        targets = unit_targets(name, "features", features, engine.dim, engine.compute, tower.device)
        shape = [len(targets), count, engine.width]
        if list(tokens.shape) != shape:
            remedy = "pass the rows that were inverted, features[:len(inversion.tokens)]"
            contract = f"have tokens {shape}, a row for each feature"
            raise ValueError(_errors.message(name, "inversion", contract, tokens, remedy))
        tokens = tokens.to(targets)
        check_template(name, engine, tokens, inversion.features.to(targets))
        used = (targets != 0).any(1)
        if int(used.sum()) < 2:
            raise too_few(name, int(used.sum()))
        description = {"template": template, "vectors": count, "tower": tower, "rows": rows}
        return cls._fitted(engine, targets[used], tokens[used], number, identity_of("oti", description))

    @classmethod
    def _fitted(
        cls, engine: TowerEngine, targets: Tensor, tokens: Tensor, ridge: float | None, identity: Identity
    ) -> InversionMap:
        def loss(values: Tensor, held: Tensor) -> float:
            start = values.reshape(-1, *tokens.shape[1:]).to(targets)
            cosines = (engine.features(start, unit=True) * targets[held.to(targets.device)]).sum(1)
            return float((1 - cosines).double().mean())

        found, ridge, least = chosen(targets, tokens.flatten(1), ridge, loss)
        offset = found.offset.reshape(tokens.shape[1:])
        return cls(found.matrix, offset, identity, ridge=ridge, held_out_loss=least)

    # -- files ---------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes a safetensors file (map, what it belongs to, ridge) to `path`, atomically."""
        facts = {
            "identity": self.identity, "ridge": self.ridge, "held_out_loss": self.held_out_loss,
            "pilots": self._pilots,
        }  # fmt: skip
        tensors = {"matrix": self.matrix, "offset": self.offset}
        _files.save_tensors(path, tensors, {"format": FORMAT, "facts": json.dumps(facts, sort_keys=True)})

    @classmethod
    def load(cls, path: Any) -> InversionMap:
        """Reads what ``save`` wrote to `path`; refuses a foreign or truncated file (ValueError)."""
        return cls._read("InversionMap.load", path)

    @classmethod
    def _read(cls, where: str, path: Any) -> InversionMap:
        tensors, meta = _schema.load(where, path, FORMAT, _FILE, ("facts",))
        with _schema.restoring(where, path):
            facts = _files.parse_json(meta["facts"])
            ridge = _schema.number(where, path, "ridge", facts["ridge"], 0.0)
            least = facts["held_out_loss"]
            if least is not None:
                least = _schema.number(where, path, "held_out_loss", least)
            pilots = facts["pilots"]
            _schema.need(where, path, isinstance(pilots, dict), "facts of its pilots", pilots)
            given = tensors["matrix"], tensors["offset"], facts["identity"]
            phi = cls(*given, ridge=ridge, held_out_loss=least)
            phi._pilots = pilots
        return phi
