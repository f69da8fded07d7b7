"""A step of few rows in one cooperative launch, against the same calls launch by launch: the same bits."""

from __future__ import annotations

import numpy as np

from tests.cuda_emulation.buffers import BFLOAT, FLOAT, HALF, NOTHING, SANITIZED, Matrix, plain
from tests.cuda_emulation.cases import PLACE, STORAGES
from tests.cuda_emulation.cases_few_rows import (
    ACTIVATE,
    ACTIVATE_GRAD,
    NO_NORM,
    NORM,
    NORM_GRAD,
    NORM_GRAD_STATS,
    PLAIN,
    STORE,
    SUM,
    normal,
)

Call = tuple[str, tuple]
STEPS, DIM, PREFIX, SLOTS = 2, 40, 3, 2
PLAINLY = (PLAIN, NO_NORM, NOTHING, NOTHING, NOTHING)


def first(matrix: Matrix, rows: int) -> tuple[int, int, int, int, int]:
    return (*matrix.view[:2], rows, *matrix.view[3:])


class Tower:
    """Arrays of a small tower and the launches of a step over them, in the order of few_rows.py."""

    def __init__(
        self, m, rng: np.random.Generator, dtype: int, samples: int, width: int, layers: int
    ) -> None:
        self.m, self.rng, self.dtype, self.samples, self.width = m, rng, dtype, samples, width
        self.rows, self.heads, self.hidden = SLOTS * samples, 1 if width > 64 else 2, width + 24
        self.made: list[Matrix] = []
        self.keeps: list[np.ndarray] = []
        widest = max(3 * width, self.hidden)
        counts = (self.rows, max(width, self.hidden), widest)
        self.sums = self.new(1, m.few_rows_cuda_sums(*counts) + 8, FLOAT)
        self.sums_at = self.sums.address + -self.sums.address % 32  # where wmma may store
        self.tickets = plain(np.zeros(m.few_rows_cuda_tickets(self.rows, widest)), np.int32)
        self.done = plain(np.zeros(64), np.int32)
        self.stats = self.new(1, 2 * self.rows * m.few_rows_cuda_tiles(widest), FLOAT)
        self.base, self.x = normal(rng, SLOTS, width), self.drawn(self.rows, width)
        self.calls: list[Call] = []
        self.walk(layers)

    def new(self, rows: int, cols: int, dtype: int | None = None) -> Matrix:
        self.made.append(Matrix(rows, cols, self.dtype if dtype is None else dtype, values=0.0))
        return self.made[-1]

    def drawn(self, rows: int, cols: int, scale: float = 1.0) -> Matrix:
        values = self.rng.standard_normal((rows, cols)) * scale
        self.made.append(Matrix(rows, cols, self.dtype, values=values))
        return self.made[-1]

    def norm(self, rows: int) -> tuple:
        weight, bias = normal(self.rng, 1, self.width), normal(self.rng, 1, self.width)
        mean, rstd = self.new(1, rows, FLOAT), self.new(1, rows, FLOAT)
        self.made += [weight, bias]
        return (weight.address, bias.address, 1e-5, mean.address, rstd.address, self.stats.address)

    def product(self, x, weight: Matrix, transposed: bool, before: tuple, behind: tuple, y) -> None:
        self.calls.append(
            (
                "few_rows",
                (x, weight.view, transposed, before, behind, y, self.sums_at, self.tickets.ctypes.data),
            )
        )

    def walk(self, layers: int) -> None:
        m, n, s, t = self.m, self.rows, self.samples, self.width
        x, stack = self.x, []
        for layer in range(layers):
            out = s if layer == layers - 1 else n
            shapes = {"qkv": (t, 3 * t), "out": (t, t), "fc": (t, self.hidden), "proj": (self.hidden, t)}
            w = {name: self.drawn(*shape, shape[0] ** -0.5) for name, shape in shapes.items()}
            bias = {name: self.drawn(1, shape[1], 0.3).address for name, shape in shapes.items()}
            norms = self.norm(n), self.norm(out)
            qkv, o, middle = self.new(n, 3 * t), self.new(out, t), self.new(out, t)
            h, hidden, total = self.new(out, self.hidden), self.new(out, self.hidden), self.new(out, t)
            before = (NORM, norms[0], NOTHING, NOTHING, NOTHING)
            left = x.view
            if layer == 0:
                y = self.new(n, t)
                weight, shift, eps, mean, rstd, _ = norms[0]
                self.calls.append(
                    ("layer_norm", (x.view, NOTHING, NOTHING, weight, shift, eps, y.view, mean, rstd))
                )
                before, left = PLAINLY, y.view
            behind = (STORE, NO_NORM, bias["qkv"], NOTHING, 0, NOTHING)
            self.product(left, w["qkv"], False, before, behind, qkv.view)
            attention = self.attention(qkv, out // s)
            self.calls.append(("attention", (*attention, o.view)))
            behind = (SUM, norms[1], bias["out"], first(x, out), 0, NOTHING)
            self.product(o.view, w["out"], False, PLAINLY, behind, middle.view)
            behind = (ACTIVATE, NO_NORM, bias["fc"], NOTHING, layer, hidden.view)
            before = (NORM, norms[1], NOTHING, NOTHING, NOTHING)
            self.product(middle.view, w["fc"], False, before, behind, h.view)
            behind = (SUM, (*NO_NORM[:5], self.stats.address), bias["proj"], middle.view, 0, NOTHING)
            self.product(hidden.view, w["proj"], False, PLAINLY, behind, total.view)
            stack.append((layer, x, w, norms, attention, middle, h, hidden))
            x = total
        final, projection = self.norm(s), self.drawn(t, DIM, t**-0.5)
        self.features, self.grad = self.new(s, DIM), self.new(s, DIM)
        before = (NORM, final, NOTHING, NOTHING, NOTHING)
        self.product(x.view, projection, False, before, (STORE, NO_NORM, 0, NOTHING, 0, NOTHING),
                     self.features.view)  # fmt: skip
        self.loss_at = len(self.calls)
        y, dx = self.new(s, t), self.new(n, t)
        self.product(self.grad.view, projection, True, PLAINLY,
                     (NORM_GRAD_STATS, final, 0, x.view, 0, NOTHING), y.view)  # fmt: skip
        left, before, above = y.view, (NORM_GRAD, final, x.view, NOTHING, first(dx, s)), first(dx, s)
        for layer, x, w, norms, attention, middle, h, hidden in reversed(stack):
            out = middle.rows
            da, do, dqkv, dm = self.new(n, t), self.new(out, t), self.new(n, 3 * t), self.new(n, t)
            self.product(left, w["proj"], True, before, (ACTIVATE_GRAD, NO_NORM, 0, h.view, layer, NOTHING),
                         hidden.view)  # fmt: skip
            self.product(hidden.view, w["fc"], True, PLAINLY,
                         (NORM_GRAD_STATS, norms[1], 0, middle.view, 0, NOTHING), first(da, out))  # fmt: skip
            before = (NORM_GRAD, norms[1], middle.view, above, first(dm, out))
            self.product(first(da, out), w["out"], True, before, (STORE, NO_NORM, 0, NOTHING, 0, NOTHING),
                         do.view)  # fmt: skip
            self.calls.append(("attention_grad", (*attention, do.view, dqkv.view[0])))
            kind = STORE if layer == 0 else NORM_GRAD_STATS
            side = NO_NORM if layer == 0 else norms[0]
            other = NOTHING if layer == 0 else x.view
            self.product(dqkv.view, w["qkv"], True, PLAINLY, (kind, side, 0, other, 0, NOTHING), da.view)
            dx = self.new(n, t)
            left, before, above = da.view, (NORM_GRAD, norms[0], x.view, dm.view, dx.view), dx.view
        weight, _, _, mean, rstd, _ = norms[0]
        self.grad_x = dx
        self.calls.append(("layer_norm_grad", (self.x.view, da.view, weight, mean, rstd, dm.view, dx.view)))
        self.ends(m)

    def attention(self, qkv: Matrix, queries: int) -> tuple:
        prefix = self.drawn(2 * PREFIX, self.width)
        visible = plain([(2 << i) - 1 for i in range(queries)], np.uint64)
        lse = self.new(self.samples * self.heads, queries, FLOAT)
        self.keeps.append(visible)
        return (qkv.view, self.samples, self.heads, SLOTS, queries, PREFIX, prefix.address,
                visible.ctypes.data, lse.address)  # fmt: skip

    def ends(self, m) -> None:
        s, t, rng = self.samples, self.width, self.rng
        targets = rng.standard_normal((s, DIM))
        targets = Matrix(s, DIM, values=targets / np.linalg.norm(targets, axis=1, keepdims=True))
        self.losses, unit = self.new(STEPS, s, FLOAT), self.new(s, DIM, FLOAT)
        self.step, step_now = plain([0], np.int64), plain([0], np.int64)
        self.loss = (self.features.view, targets.view, 1.0, self.step.ctypes.data, step_now.ctypes.data,
                     self.losses.address, self.grad.view, unit.address)  # fmt: skip
        source = plain([0] * SLOTS, np.int32)
        tokens, rates = self.new(s, t, FLOAT), plain([0.1, 0.05], np.float32)
        moments, corrections = (self.new(s, t, FLOAT), self.new(s, t, FLOAT)), plain([0.5, 0.7], np.float32)
        self.update = (
            s, 1, t, SLOTS, source.ctypes.data, self.grad_x.view, tokens.address, moments[0].address,
            moments[1].address, rates.ctypes.data, corrections.ctypes.data, step_now.ctypes.data,
            self.step.ctypes.data, 0.02, 0.9, 0.999, 1e-8, 0.01, 1.0, self.base.address, 1, self.x.view,
        )  # fmt: skip
        self.made.append(targets)
        self.keeps += [step_now, source, rates, corrections]
        self.kept = [matrix._words.copy() for matrix in self.made]

    # -- both ways -------------------------------------------------------------------------------

    def fresh(self) -> None:
        self.tickets[...] = 0
        for matrix, words in zip(self.made, self.kept, strict=True):
            matrix._words[...] = words
        self.step[...] = 0

    def found(self, steps: int) -> list[np.ndarray]:
        assert not self.tickets.any() and not self.done.any(), "tickets are not back at zero"
        assert self.step[0] == steps
        return [matrix._words.copy() for matrix in self.made if matrix is not self.sums]

    def launched(self) -> list[np.ndarray]:
        self.fresh()
        for _ in range(STEPS):
            for at, (name, args) in enumerate(self.calls):
                if at == self.loss_at:
                    self.m.cosine_loss_cuda(*self.loss, *PLACE)
                getattr(self.m, f"{name}_cuda")(*args, *PLACE)
            self.m.adamw_cuda(*self.update, *PLACE)
        return self.found(STEPS)

    def named(self) -> list[str]:
        names = [name for name, _ in self.calls]
        return [*names[: self.loss_at], "loss", *names[self.loss_at :], "update"]

    def phases(self) -> list[bytes]:
        records = [getattr(self.m, f"{name}_cuda_phase")(*args) for name, args in self.calls]
        records.insert(self.loss_at, self.m.tower_step_cuda_loss())
        return [*records, self.m.tower_step_cuda_update()]

    def at_once(self, blocks: int, cuts: tuple[int, ...] = (), steps: int = STEPS) -> list[np.ndarray]:
        """In launches that end at `cuts` and at the end of the step."""
        self.fresh()
        records = self.phases()
        whole, joined = self.m.tower_step_cuda_heads(b"".join(records), self.done.ctypes.data)
        names = [name for name, _ in self.calls]
        alone = self.samples <= 16 // SLOTS  # that one block has at once
        assert joined == alone * sum(name.startswith("attention") for name in names)
        room = Matrix(1, len(whole) // 4 + 4)  # from a 16-byte boundary
        room._words[0, :-4] = np.frombuffer(whole, np.uint32)
        arrived, ends = plain([0], np.int64), (*cuts, len(records))
        for _ in range(steps):
            for begin, end in zip((0, *ends), ends, strict=False):
                self.m.tower_step_cuda(self.dtype, room.address, begin, end, self.loss, self.update, blocks,
                                       arrived.ctypes.data, *PLACE)  # fmt: skip
        # An attention by heads meets nobody before it, unless its launch begins there.
        met = steps * (len(records) - len(ends) - joined + sum(name.startswith("attention") for at, name in
                       enumerate(self.named()) if alone and at in cuts))  # fmt: skip
        assert arrived[0] == met * blocks, "blocks met another number of times"
        return self.found(steps)


# dtype, samples, width, layers: heads of 24 and of 72 columns; one and two tiles of rows
TOWERS = ((BFLOAT, 3, 48, 2), (BFLOAT, 2, 72, 1), (HALF, 3, 48, 1), (BFLOAT, 33, 32, 1))


def case_step(m, rng: np.random.Generator) -> None:
    if hasattr(m, "set_processors"):  # the emulation's
        m.set_processors(2, 3)
    assert m.tower_step_cuda_blocks(FLOAT, 0) == 0
    blocks = m.tower_step_cuda_blocks(BFLOAT, 0)
    assert blocks > 0 or not hasattr(m, "set_processors")
    for dtype, samples, width, layers in TOWERS if blocks else ():
        if dtype not in STORAGES or (SANITIZED and samples > 3):  # where every access is followed
            continue
        tower = Tower(m, rng, dtype, samples, width, layers)
        want = tower.launched()
        losses = tower.losses.values
        assert np.isfinite(losses).all() and (losses[0] != losses[1]).all()
        at = tower.loss_at
        # The last cut stands between a product and its attention.
        for few, cuts in ((min(blocks, 3 if SANITIZED else 5), ()), (2, (at, at + 1, at + 3, at + 5))):
            for got, expected in zip(tower.at_once(few, cuts), want, strict=True):
                assert np.array_equal(got, expected), "one launch differs from the launches in bits"
    if hasattr(m, "set_processors"):
        refusals(m, rng)
        m.set_processors(0, 1)
        assert m.tower_step_cuda_blocks(BFLOAT, 0) == 0


def refusals(m, rng: np.random.Generator) -> None:
    tower = Tower(m, rng, BFLOAT, 2, 48, 1)
    single = (tower.x.address, FLOAT, *tower.x.view[2:])
    off = (tower.x.address + 4, *tower.x.view[1:])
    for run, told in (
        (lambda: tower.at_once(7), "too many blocks"),
        (lambda: m.layer_norm_cuda_phase(off, *tower.calls[0][1][1:]), "aligned to 16 bytes"),
        (lambda: m.few_rows_cuda_phase(off, *tower.calls[1][1][1:]), "aligned to 16 bytes"),
        (lambda: m.layer_norm_cuda_phase(single, *tower.calls[0][1][1:]), "only float16 and bfloat16"),
        (lambda: m.attention_cuda_phase(off, *tower.calls[2][1][1:]), "aligned to 16 bytes"),
    ):
        try:
            run()
        except (RuntimeError, ValueError) as error:
            assert told in str(error), error
        else:
            raise AssertionError(f"not refused: {told}")
