"""Inversion by a learned start: some features are inverted, and a map learns to predict tokens.

    pilots f_i → tokens v_i by OTI        W, b = argmin Σ‖norm(f_i)·W + b − v_i‖² + λ‖W‖²
    training on all features              min mean(1 − cos(tower(φ(f)), f))
    start of any other feature:           φ(f) = norm(f)·W + b + relu(norm(f)·inner)·outer

The pilots go on from what the regression predicts for them, and it is made again: each such round brings
their tokens nearer to one map of the features. From there the map is trained through the tower, with a
hidden layer beside the matrix. docs/guides/learned_start.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _digest, _errors, _files, _numbers
from semobridge_ext._engines.tower_descent.choice import make_engine
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.clip.towers import text_entry
from semobridge_ext.inversion.invert import invert_rows
from semobridge_ext.inversion.map_store import MapStore, read_map, write_map
from semobridge_ext.inversion.map_training import Checkpoint, Training, loss_of
from semobridge_ext.inversion.pilots import Drawn, check_template, checked_ridge, drawn, too_few
from semobridge_ext.inversion.ridge import Solution, chosen
from semobridge_ext.inversion.settings import check_count, check_generator, check_settings
from semobridge_ext.inversion.spec import Inversion
from semobridge_ext.inversion.start import Identity, Layer, Start, identity_of
from semobridge_ext.inversion.targets import unit_targets
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self

_FIRST = 50  # pilots at least that are inverted from a cold start, where there are so many


class InversionMap(Start):
    """A map from image features to start tokens: ``sb.oti(model, f, init=phi)`` begins there.

    ``phi(f) = norm(f)·matrix + offset + relu(norm(f)·inner)·outer``, the last term where the map was trained.
    Make it with :meth:`fit`, :meth:`from_inversion` or :meth:`load`.

    Args:
        matrix: [D, R·T] float64.
        offset: [R, T] float64.
        identity: what the map belongs to, as a file keeps it; :func:`semobridge_ext.oti` refuses it
            elsewhere.
        ridge: that the regression had.
        layer: inner [D, H] and outer [H, R·T] float64, or None: a linear map.
        held_out_loss: mean of 1 − cos of predicted tokens for rows held out; None where none were.

    Attributes:
        matrix, offset, identity, ridge, held_out_loss: as above. inner, outer: the layer's, or None.
        compute: dtype of the tokens.

    Raises:
        TypeError: no float tensors. ValueError: shapes do not fit, values are not finite, or ``identity`` is
            not of a map.

    Numerics: the regression in float64 in closed form, the training in float32 (float64 for a float64
        model), whose last bits may depend on the number of threads; applied in float32 (float64) on the CPU,
        each row independent of its batch. Features are normalised; not differentiable. A zero row gets
        ``offset``.

    Memory: D·R·T + H·(D + R·T) values in float64, and a packed copy for calls.

    Example:
        >>> import torch, open_clip, semobridge_ext as sb
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> model = open_clip.CLIP(16, vision, text)
        >>> f = torch.randn(60, 16)
        >>> phi = sb.InversionMap.fit(model, f, pilots=40, steps=20, refine=(5,), train_steps=50)
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
        layer: Layer | None = None,  # [D, H], [H, R·T]
        held_out_loss: float | None = None,
    ) -> None:
        self._set(matrix, offset, identity, layer)
        self.ridge, self.held_out_loss = ridge, held_out_loss
        self._pilots: _digest.Stamp = {}

    @property
    def num_tokens(self) -> int:
        return self.offset.shape[0]

    def __repr__(self) -> str:
        width, (count, tokens) = len(self.matrix), self.offset.shape
        layer = "" if self.inner is None else f", {self.inner.shape[1]} hidden"
        return f"InversionMap({width} → {count}×{tokens}, ridge {self.ridge:g}{layer})"

    # -- fitting -------------------------------------------------------------------------------------

    @classmethod
    @plain_modes()
    def fit(
        cls,
        model: Any,
        features: Any,  # [B, D]
        *,
        pilots: int = 300,
        num_tokens: int = 1,
        template: str = "a photo of {}",
        tokenizer: Any = None,
        ridge: float | str = "auto",
        steps: int = 50,
        refine: Sequence[int] = (20,),
        hidden: int = 512,
        train_steps: int = 1000,
        lr: float = 2e-2,
        weight_decay: float = 0.01,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        weights: torch.dtype | None = None,
        out: str | Path | None = None,
    ) -> Self:
        """Inverts some of the features, fits the map to their tokens, and trains it on all features.

        Args:
            model: as in :func:`semobridge_ext.oti`, like num_tokens, template, tokenizer, lr, weight_decay,
                batch_size, progress and weights.
            features: [B, D] any length and float dtype, a tensor or array; rows that are zero take no part.
            pilots: how many of them are inverted. A few hundred do.
            ridge: λ of the regression in units of the mean eigenvalue of the features' covariance. "auto":
                among 10⁻⁴ … 10², by half powers of ten, the one whose predictions for a fifth of the pilots,
                held out, have the least loss through the tower; the map is then fitted to all of them.
            steps: of the first inversion. It starts all its pilots, a fifth of them but at least 50, at one
                row of N(0, 0.02²): start values of their own would be noise in the regression.
            refine: steps of each further round. All pilots start at what the map predicts for them, and the
                map is fitted again; () for none, and then ``steps`` are taken by all pilots.
            hidden: H, width of the layer that the training adds.
            train_steps: AdamW steps of 32 features on the loss through the tower, at half of ``lr`` (the
                layer 0.15 of it), falling to zero in a line. The state of ten with the least loss on rows
                held out, a fifth and at most 256, is taken. 0, or fewer than ten rows: the map stays linear.
            generator: of the draws and the first start values; None takes torch's global one.
            out: a file for the map. Pilots that are inverted, and a tenth of the training at a time, are kept
                beside it until it is written: the same call after a kill goes on, after the end it reads the
                file, and a call with anything different is refused. Seed it with ``generator``.

        Returns:
            The map. Ctrl-C raises KeyboardInterrupt; what is finished stays with ``out``.

        Raises:
            As :func:`semobridge_ext.oti`; ValueError also: fewer than two rows that are not zero.
        """
        name = "InversionMap.fit"
        refine = _numbers.whole_numbers(name, "refine", refine, "(20,)")
        rounds = (check_count(name, "steps", steps, 0), *refine)
        check_generator(name, generator)
        for count in refine:
            check_count(name, "refine", count, 1)
        settings = [check_settings(name, s, lr, weight_decay, (), None, 1e-4, weights) for s in rounds]
        num_tokens = check_count(name, "num_tokens", num_tokens, 1)
        pilots = check_count(name, "pilots", pilots, 2)
        hidden = check_count(name, "hidden", hidden, 1)
        train_steps = check_count(name, "train_steps", train_steps, 0)
        lr, weight_decay = settings[0].lr, settings[0].weight_decay
        number = checked_ridge(name, ridge)
        tower, rows, pass_ = text_entry(name, model, template, num_tokens=num_tokens, tokenizer=tokenizer)
        engine = make_engine("oti", model, tower, rows, weights, run=pass_)
        description = {
            "template": template, "vectors": num_tokens, "weights": str(weights), "tower": tower,
            "rows": rows,
        }  # fmt: skip
        identity = identity_of("oti", description)
        targets = unit_targets(name, "features", features, engine.dim, engine.compute, tower.device)
        given = drawn(name, targets, pilots, engine, generator, hidden, train_steps)
        facts = {
            **identity, "ridge": ridge, "steps": list(rounds), "lr": lr, "weight_decay": weight_decay,
            "weights": str(weights), "pilots_digest": given.pilots, "init_digest": given.first,
        }  # fmt: skip
        if len(given.held):
            facts |= {
                "hidden": hidden, "train_steps": train_steps, "features_digest": [given.rows, given.held],
                "training_digest": [given.batches, given.inner],
            }  # fmt: skip
        store = None
        if out is not None:
            store = MapStore(
                name, Path(_files.place(out, name)), _digest.stamp(facts), cls._read, lambda phi: phi._pilots
            )

        def invert(part: Tensor, index: int, start: Tensor) -> Tensor:  # [n, D] -> [n, R, T]
            found = invert_rows(
                name, engine, part, "features", settings[index], start, None, batch_size, progress,
                None if store is None else store.part(index), {**description, "round": index},
            )  # fmt: skip
            if found.interrupted:
                raise KeyboardInterrupt
            return found.tokens

        def run() -> Any:
            own = given.pilots
            every = max(1, min(5, len(own) // _FIRST)) if refine else 1
            part = own[::every]
            phi = cls._fitted(engine, part, invert(part, 0, given.first), number, identity)
            for index in range(1, len(rounds)):
                phi = cls._fitted(engine, own, invert(own, index, phi._tokens(own)), number, identity)
            if len(given.held):
                file = None if store is None else Checkpoint(store.training, facts)
                phi = cls._trained(engine, phi, given, lr, file, progress)
            if store is not None:
                phi._pilots = store.facts
            return phi

        if store is None:
            return run()
        return store.kept(run, lambda phi: phi.save(store.path))

    @classmethod
    @plain_modes()
    def from_inversion(
        cls,
        model: Any,
        features: Any,  # [B, D]
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
        number = checked_ridge(name, ridge)
        tokens = _arrays.tensor(name, "inversion.tokens", inversion.tokens)
        made = _arrays.tensor(name, "inversion.features", inversion.features)
        count = tokens.shape[1]
        tower, rows, pass_ = text_entry(name, model, template, num_tokens=count, tokenizer=tokenizer)
        engine = make_engine("oti", model, tower, rows, None, run=pass_)
        targets = unit_targets(name, "features", features, engine.dim, engine.compute, tower.device)
        shape = [len(targets), count, engine.width]
        if list(tokens.shape) != shape:
            remedy = "pass the rows that were inverted, features[:len(inversion.tokens)]"
            contract = f"have tokens {shape}, a row for each feature"
            raise ValueError(_errors.message(name, "inversion", contract, tokens, remedy))
        tokens = tokens.to(targets)
        check_template(name, engine, tokens, made.to(targets))
        used = (targets != 0).any(1)
        if int(used.sum()) < 2:
            raise too_few(name, int(used.sum()))
        description = {"template": template, "vectors": count, "tower": tower, "rows": rows}
        return cls._fitted(engine, targets[used], tokens[used], number, identity_of("oti", description))

    @classmethod
    def _fitted(
        cls, engine: TowerEngine, targets: Tensor, tokens: Tensor, ridge: float | None, identity: Identity
    ) -> Self:
        def loss(values: Tensor, held: Tensor) -> float:
            start = values.reshape(-1, *tokens.shape[1:]).to(targets)
            return loss_of(engine, start, targets[held.to(targets.device)])

        found, ridge, least = chosen(targets, tokens.flatten(1), ridge, loss)
        offset = found.offset.reshape(tokens.shape[1:])
        return cls(found.matrix, offset, identity, ridge=ridge, held_out_loss=least)

    @classmethod
    def _trained(
        cls, engine: TowerEngine, start: Self, given: Drawn, lr: float, file: Checkpoint | None,
        progress: bool,
    ) -> Self:  # fmt: skip
        solution = Solution(start.matrix, start.offset.flatten())
        training = Training(engine, given.rows, given.held, given.batches, given.inner, solution, lr)
        training.run(file, progress)
        best = training.best
        offset = best["offset"].reshape(start.offset.shape)
        return cls(
            best["matrix"], offset, start.identity, ridge=start.ridge, layer=(best["inner"], best["outer"]),
            held_out_loss=training.least,
        )  # fmt: skip

    # -- files ---------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes a safetensors file (map, what it belongs to, ridge) to `path`, atomically."""
        facts = {
            "identity": self.identity, "ridge": self.ridge, "held_out_loss": self.held_out_loss,
            "pilots": self._pilots,
        }  # fmt: skip
        write_map(path, self._parts(), facts)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote to `path`; refuses a foreign or truncated file (ValueError)."""
        return cls._read("InversionMap.load", path)

    @classmethod
    def _read(cls, where: str, path: Any) -> Self:
        with read_map(where, path) as (parts, facts):
            phi = cls(**parts)
            phi._pilots = facts
        return phi
