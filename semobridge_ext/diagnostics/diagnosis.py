"""Intra-modal diagnostics: what a mapping does to features of one modality, with confidence intervals.

mAP, Recall@k          each row a query among all the others, relevant: equal labels
neighbours@k           mean share of a row's k nearest that bear its label
intra-, inter-class    mean cosine of two rows of one class, of two classes
overlap                Σ over bins of min(share within, share between): 0 apart, 1 indistinguishable
modality gap           ‖mean norm(x) − mean norm(t)‖
effective rank         exp(−Σ p ln p), p the variance's shares along its principal directions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _files, _inputs, _numbers
from semobridge_ext.diagnostics import resampling
from semobridge_ext.diagnostics.resampling import Estimate
from semobridge_ext.runtime.plain_modes import plain_device

_NAME = "diagnose"
Mapping = Callable[[Tensor], Tensor] | Tensor | None


@dataclass(frozen=True)
class Figures:
    """One set of features: its figures by name, histograms [bins] of cosines, variances [D]."""

    values: dict[str, Estimate]
    intra: Tensor  # [bins] int64, ordered pairs of one class
    inter: Tensor  # [bins] int64, ordered pairs of two classes
    edges: Tensor  # [bins + 1]
    spectrum: Tensor  # [D] float64 variances along the principal directions, descending

    def __getitem__(self, name: str) -> Estimate:
        return self.values[name]


@dataclass(frozen=True)
class Diagnosis:
    """Result of `diagnose`: figures before and after a mapping, and their paired differences.

    Args:
        before: figures of the features as they are (or behind ``baseline``).
        after: figures behind the mapping; None without one.
        difference: after minus before by name, with intervals of the paired resamples.
        settings: how many rows, classes and resamples, and the seed.

    Raises:
        ImportError: from ``plot``, without matplotlib.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
        >>> d = sb.diagnose(x, torch.arange(40) % 4, sb.LinearMap.centering(x.mean(0)), resamples=50)
        >>> print(d.table().splitlines()[0])
        | figure | before | after | difference |
    """

    before: Figures
    after: Figures | None
    difference: dict[str, Estimate]
    settings: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """A Markdown table; fractions in per cent, each figure with its interval; * where 0 is outside."""
        if self.after is None:
            lines = ["| figure | value |", "|---|---|"]
            return "\n".join(lines + [f"| {n} | {_shown(n, e)} |" for n, e in self.before.values.items()])
        lines = ["| figure | before | after | difference |", "|---|---|---|---|"]
        for name, before in self.before.values.items():
            after, change = self.after.values[name], self.difference[name]
            mark = " *" if change.low > 0 or change.high < 0 else ""
            lines.append(
                f"| {name} | {_shown(name, before)} | {_shown(name, after)} "
                f"| {_shown(name, change, signed=True)}{mark} |"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and lists, for JSON."""

        def plain(figures: Figures | None) -> Any:
            if figures is None:
                return None
            return {
                "values": {n: e._asdict() for n, e in figures.values.items()},
                **{n: getattr(figures, n).tolist() for n in ("intra", "inter", "edges", "spectrum")},
            }

        change = {name: e._asdict() for name, e in self.difference.items()}
        return {
            "before": plain(self.before), "after": plain(self.after), "difference": change,
            "settings": dict(self.settings),
        }  # fmt: skip

    def plot(self, path: Any) -> None:
        """Draws both cosine histograms and both spectra.

        Args:
            path: the picture; its ending names the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                f"Diagnosis.plot: matplotlib must be installed, got none ({error}); pip install matplotlib"
            ) from error
        shown = [("before", self.before)] + ([] if self.after is None else [("after", self.after)])
        figure = Figure(figsize=(3.6 * (len(shown) + 1), 3.0), layout="constrained")
        axes = figure.subplots(1, len(shown) + 1)
        for ax, (title, figures) in zip(axes, shown, strict=False):
            for name, counts in (("one class", figures.intra), ("two classes", figures.inter)):
                share = (counts / counts.sum()).tolist()
                ax.stairs(share, figures.edges.tolist(), fill=True, alpha=0.5, label=name)
            ax.set(title=f"{title}: overlap {figures['overlap'].value:.2f}", xlabel="cosine", ylabel="share")
            ax.legend(frameon=False)
        for title, figures in shown:
            part = figures.spectrum / figures.spectrum.sum()
            axes[-1].semilogy(part.clamp_min(1e-12).tolist(), label=title)
        axes[-1].set(title="spectrum", xlabel="principal direction", ylabel="share of the variance")
        axes[-1].legend(frameon=False)
        _files.write_figure(path, figure, dpi=130)


_PLAIN = ("cosine", "gap", "rank")  # the others are fractions


def _shown(name: str, e: Estimate, signed: bool = False) -> str:
    factor, digits = (1, 3) if name.endswith(_PLAIN) else (100, 1)
    digits = 1 if name == "effective rank" else digits
    sign = "+" if signed else ""
    low, high = (f"{factor * v:{sign}.{digits}f}" for v in (e.low, e.high))
    return f"{factor * e.value:{sign}.{digits}f} [{low}, {high}]"


def _mapped(argument: str, mapping: Mapping, features: Tensor) -> Tensor:  # unit rows on the CPU
    if mapping is None:
        return resampling.unit(features)
    if isinstance(mapping, Tensor) or _arrays.is_array(mapping):
        rows = _arrays.tensor(_NAME, argument, mapping)
    elif callable(mapping):
        with torch.no_grad():
            rows = mapping(features)
    else:
        contract, remedy = "be a callable or the mapped rows", "pass a LinearMap, a Bridge, or a function"
        raise TypeError(_errors.message(_NAME, argument, contract, mapping, remedy))
    _errors.check_float_tensor(_NAME, argument, rows)
    if rows.dim() != 2 or len(rows) != len(features):
        contract, remedy = f"give {len(features)} rows", "map every row to one row"
        raise ValueError(_errors.message(_NAME, argument, contract, rows, remedy))
    _errors.check_finite(_NAME, argument, rows, "check the mapping, or drop these rows")
    return resampling.unit(rows)


def _check_numbers(recall_at: Sequence[int], **numbers: int) -> None:
    for name, value in [*numbers.items(), *(("recall_at", k) for k in recall_at)]:
        if not _numbers.is_whole(value):
            raise TypeError(_errors.message(_NAME, name, "be an int", value, "pass a count"))
        if value >= 2**31:
            raise ValueError(_errors.message(_NAME, name, "be below 2³¹", value, "pass a smaller count"))
        if value < (2 if name in ("bins", "resamples") else 1):
            least = 2 if name in ("bins", "resamples") else 1
            raise ValueError(_errors.message(_NAME, name, f"be ≥ {least}", value, "pass a larger count"))


def _codes(labels: Any, rows: int) -> Tensor:  # [N] int64 from 0
    names = _inputs.names(_NAME, labels, rows, argument="labels", of="features")
    codes = _inputs.encode(_NAME, names, _inputs.ordered(names))
    counts = torch.bincount(codes)
    if len(counts) < 2 or int(counts.max()) < 2:
        got = f"{len(counts)} classes with at most {int(counts.max())} rows"
        remedy = "diagnostics compare within and between classes"
        contract = "hold two classes, one of them with two rows"
        raise ValueError(_errors.message(_NAME, "labels", contract, got, remedy))
    return codes


@plain_device()
def diagnose(
    features: Any,  # [N, D]
    labels: Any,  # N class names
    mapping: Mapping = None,
    *,
    baseline: Mapping = None,
    other: Any = None,  # [M, D]
    other_mapping: Mapping = None,
    other_baseline: Mapping = None,
    recall_at: Sequence[int] = (1, 5, 10),
    neighbours: int = 10,
    bins: int = 200,
    resamples: int = 1000,
    resample: str = "queries",
    confidence: float = 0.95,
    seed: int = 0,
) -> Diagnosis:
    """Features of one modality before and after a mapping: retrieval, neighbours, cosines, gap, rank.

    Args:
        features: [N, D] images or texts, any float dtype; normalised here, before and after.
        labels: N class names or integers.
        mapping: what is judged: a callable on features [N, D] (LinearMap, Bridge, ``iso.image``), or
            the N mapped rows themselves. None: the features alone.
        baseline: the same for "before"; None: the features as they are. For IsoCLIP, whose features are
            those before the projection, ``iso.native_map()``.
        other: [M, D] features of the other modality, for the modality gap; None leaves it out.
        other_mapping, other_baseline: mappings of ``other``; None: as it is.
        recall_at: the k of Recall@k.
        neighbours: the k of the neighbours' labels (at most N − 1).
        bins: of the cosine histograms over [−1, 1]; the overlap depends on it slightly.
        resamples: of the bootstrap.
        resample: "queries" draws rows; "classes" draws whole classes, for a statement about classes
            that were not measured (wider intervals).
        confidence: of the intervals.
        seed: of the draws, the same before and after: differences are paired.

    Returns:
        `Diagnosis`: ``before``, ``after``, ``difference``, ``.table()``, ``.plot(path)``,
        ``.to_dict()``.

    Raises:
        TypeError: kind or dtype. ValueError: shapes that do not fit, NaN, fewer than two classes.

    Numerics: cosines in float32 (float64 for float64 features), figures in float64. Intervals are the
        bootstrap's percentiles: retrieval and neighbours draw queries before a gallery that stays;
        cosines draw both rows of a pair, to first order; the overlap draws 64 groups of rows (or the
        classes). Overlap and gap are centred on the figure, whose drawn copies are biased. The
        effective rank has the jackknife over ten groups. Deterministic by seed.

    Memory: O(N·D) and tiles of 2 million cosines; the [N, N] array never exists.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> x = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0], [-0.1, 1.0]])
        >>> d = sb.diagnose(x, ["a", "a", "b", "b"], recall_at=(1,), resamples=20)
        >>> d.before["mAP"].value, d.before["overlap"].value
        (1.0, 0.0)

    Measures asked of SeMoBridge (arXiv 2509.26036) and IsoCLIP (arXiv 2603.19862) alike.
    """
    x = _errors.check_float_tensor(_NAME, "features", _arrays.tensor(_NAME, "features", features))
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(_errors.message(_NAME, "features", "be [N, D]", x, "pass one row per item"))
    _errors.check_finite(_NAME, "features", x, "drop the rows with NaN or inf")
    codes = _codes(labels, len(x))
    ks = _numbers.whole_numbers(_NAME, "recall_at", recall_at, "(1, 5, 10)")
    _check_numbers(ks, neighbours=neighbours, bins=bins, resamples=resamples)
    if resample not in ("queries", "classes"):
        remedy = "draw rows, or whole classes"
        raise ValueError(_errors.message(_NAME, "resample", "be 'queries' or 'classes'", resample, remedy))
    _numbers.check_number(_NAME, "seed", seed, whole=True, remedy="0 is the default")
    if not _numbers.is_real(confidence) or not 0 < confidence < 1:
        raise ValueError(_errors.message(_NAME, "confidence", "lie in (0, 1)", confidence, "pass 0.95"))
    # The result keeps them, and JSON knows no numbers of NumPy.
    neighbours, bins, resamples, seed = int(neighbours), int(bins), int(resamples), int(seed)
    confidence = float(confidence)
    if other is not None:
        other = _arrays.tensor(_NAME, "other", other)
        _errors.check_float_tensor(_NAME, "other", other)
        if other.dim() != 2 or other.numel() == 0:
            remedy = "pass one row per item"
            raise ValueError(_errors.message(_NAME, "other", "be [M, D]", other, remedy))
        _errors.check_finite(_NAME, "other", other, "drop the rows with NaN or inf")
    by_class = resample == "classes"
    plan = resampling.make_plan(codes, by_class, resamples, confidence, seed)
    near = min(neighbours, len(x) - 1)
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)

    def figures(which: str, own: Mapping, theirs: Mapping) -> tuple[Figures, dict[str, Tensor]]:
        prefix = "baseline" if which == "before" else "mapping"
        rows = _mapped(prefix, own, x)
        text = None if other is None else _mapped(f"other_{prefix}", theirs, other)
        if text is not None and text.shape[1] != rows.shape[1]:
            contract, remedy = f"have width {rows.shape[1]}, as the features {which}", "map both to one width"
            raise ValueError(_errors.message(_NAME, "other", contract, text, remedy))
        m = resampling.measure(rows, text, codes, plan, ks, near, bins)
        samples = resampling.resampled(m, plan)
        values = {
            name: resampling.interval(name, value, samples[name], confidence)
            for name, value in resampling.values_of(m).items()
        }
        inter, intra = m.histogram.sum(dim=0)
        spectrum = resampling.spectrum_of_moments(*m.moments)
        return Figures(values, intra, inter, edges, spectrum), samples

    before, first = figures("before", baseline, other_baseline)
    settings = {"rows": len(x), "classes": int(codes.max()) + 1, **resampling.settings_of(plan, by_class)}
    if mapping is None:
        return Diagnosis(before, None, {}, settings)
    after, second = figures("after", mapping, other_mapping)
    difference = {
        name: resampling.interval(
            name, after[name].value - before[name].value, second[name] - first[name], confidence
        )
        for name in before.values
    }
    return Diagnosis(before, after, difference, settings)
