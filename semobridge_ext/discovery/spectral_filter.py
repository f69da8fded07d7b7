"""SpectralFilter: which concepts of a large dictionary a set of images varies along."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from semobridge_ext import _errors, _files, _inputs, _numbers, _schema
from semobridge_ext._numbers import check_number
from semobridge_ext._parameters import Parameters
from semobridge_ext._schema import Field
from semobridge_ext.discovery import covariance
from semobridge_ext.discovery.centred import unit
from semobridge_ext.discovery.leading_spectrum import components
from semobridge_ext.fewshot.estimator import NotFittedError

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAST_TRACE = 1e-24  # of images that differ: rounding leaves 1e-32 of those that do not


class SpectralFilter(Parameters):
    """Scores the concepts of a dictionary by the leading spectrum of what the images say of them.

        q_i = softmax(cos(image_i, concepts)/t)            over the K concepts; columns centred
        Σ = QᵀQ/(N−1) = Σ_j λ_j v_j v_jᵀ                   λ descending
        m = first count with λ_1 + … + λ_m ≥ energy·tr Σ
        s_k = Σ_{j≤m} λ_j v_kj²                            the concept's score
        kept: by descending score, the first that reach share·Σ_k s_k

    Args:
        energy: β_e in (0, 1], of the trace. 1 takes all of it: a score is then the column's variance, without
            an eigenproblem. That keeps more names and is no substitute for less.
        share: β_c in (0, 1], of the scores.
        temperature: t > 0 of the softmax.

    Attributes:
        scores_: [K] float64, s. kept_: [M] int64, concepts in descending order of score.
        spectrum_: [m] float64, λ_1 … λ_m; empty for energy=1. n_images_: N.
        n_features_in_: the width D of image and concept features.

    Raises:
        TypeError, ValueError: at ``fit`` and ``partial_fit``: numbers out of their range. ValueError: scores
            are asked for before two images were seen.

    Numerics: sums are float64, whatever the features; on a CPU the columns that together hold a millionth of
        the energy are summed in float32, which is less than 1e-13 of the trace. Scores are those of the
        eigenpairs that the whole decomposition gives: below 3000 images (or concepts, where these are fewer)
        it is that; beyond, pairs from a block Krylov basis whose residuals are at most 1e-11 of λ_1. Where
        λ_m and λ_{m+1} agree to as many digits as the features carry, the cut between them is not
        determined, here or anywhere. Deterministic for one number of threads. The order of the images
        changes rounding alone; how they are cut into calls of ``partial_fit`` changes no bit.

    Memory: for N < K the N×N Gram matrix, 8·N² bytes, blocks of at most 256 MiB, and where 8·N·K ≤ 1 GiB, Q,
        for a moment in two copies.
        For N ≥ K the K×K covariance, 8·K² bytes, and as much again while scores are read between two chunks;
        then images are not kept, and any number streams through. Beyond 3000 rows the Krylov basis takes
        up to 0.5 of the matrix, and LAPACK, where it must serve, two copies. K = 22 131 concepts: 0.9 GB in
        all at N = 2000, 3.9 GB for N ≥ K.
        Time: N·K·(N/2 + D) multiplications for the Gram matrix, N·K·(K/2 + D) for the covariance, and the
        eigenpairs. K = 22 131 at N = 2000: seconds on two cores. ``docs/guides/discovery.md`` has figures.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> images = torch.eye(4)[[0, 0, 1, 1, 1]]  # of the concepts 0 and 1 alone
        >>> sorted(sb.SpectralFilter().fit(images, torch.eye(4)).kept_.tolist())
        [0, 1]

    Paper: SpectralGCD, whose program forms Q and Σ whole and in float32.
    """

    _format = "semobridge-ext SpectralFilter 1"
    _file: ClassVar[dict[str, Field]] = {
        "scores": Field(("K",), (torch.float64,)),
        "kept": Field(("M",), _schema.WHOLE, bound="K"),
        "spectrum": Field(("L",), (torch.float64,)),
    }

    n_images_: int
    n_features_in_: int

    def __init__(self, energy: float = 0.95, share: float = 0.99, temperature: float = 0.01) -> None:
        self.energy, self.share, self.temperature = energy, share, temperature

    def __repr__(self) -> str:
        return f"SpectralFilter(energy={self.energy}, share={self.share}, temperature={self.temperature})"

    # -- images ------------------------------------------------------------------------------------

    def fit(self, image_features: Any, concept_features: Any) -> Self:
        """Scores the concepts on these images alone.

        Args:
            image_features: [N, D] floating-point tensor or array, N ≥ 2, any length of rows.
            concept_features: [K, D] text features of the concepts, from the same model.

        Returns:
            The filter itself.

        Raises:
            TypeError: no floating-point rows, or parameters that are no numbers.
            ValueError: NaN or infinite rows, widths or devices that differ, fewer than two images, parameters
                out of their range. What was fitted before stays.
        """
        before = dict(self.__dict__)
        try:
            self._drop("_concepts", "_chunks", "_sums", "_setting", "_result", "n_images_", "n_features_in_")
            self._take("fit", image_features, concept_features)
            if self.n_images_ < 2:
                remedy = "a covariance needs two images"
                got = f"{self.n_images_} row"
                raise ValueError(
                    _errors.message("SpectralFilter.fit", "image_features", "have 2 rows", got, remedy)
                )
            self._finish("fit", last=True)
            self._drop("_concepts", "_chunks", "_sums", "_setting")  # a covariance may be gigabytes
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def partial_fit(self, image_features: Any, concept_features: Any = None) -> Self:
        """Adds images to those so far; scores are computed when they are next asked for.

        Args:
            image_features: [n, D] as for ``fit``; an empty chunk changes nothing.
            concept_features: [K, D], needed at the first call. At later ones None, or the same again.

        Returns:
            The filter itself.

        Raises:
            TypeError: as ``fit``.
            ValueError: as ``fit``; concepts that are missing at the first call or differ at a later one; a
                filter that ``fit`` or ``load`` made, which keeps scores and not images.
        """
        self._take("partial_fit", image_features, concept_features)
        return self

    def _drop(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _take(self, verb: str, image_features: Any, concept_features: Any) -> None:
        where = f"SpectralFilter.{verb}"
        self._check_numbers(where)
        started = hasattr(self, "_concepts")
        if not started and hasattr(self, "_result"):
            remedy = "make a new one: fit and load keep scores, not images"
            raise ValueError(f"{where}: the filter must have its images, got one without; {remedy}")
        concepts = self._checked_concepts(where, concept_features)
        images = _inputs.features(where, "image_features", image_features, allow_empty=True)
        if images.shape[1] != concepts.shape[1]:
            remedy = "take both from the same model"
            contract = f"have width {concepts.shape[1]}"
            raise ValueError(_errors.message(where, "image_features", contract, images, remedy))
        _errors.check_same_device(where, "image_features", images, concepts.device)
        if not started:
            self._concepts = unit(concepts)
            self._sums: covariance.Covariance | None = None
            self._chunks: list[Tensor] = []
            self._setting, self.n_images_, self.n_features_in_ = self.temperature, 0, concepts.shape[1]
        elif self.temperature != self._setting:
            got, remedy = f"{self.temperature} after {self._setting}", "fit anew, or set it back"
            raise ValueError(_errors.message(where, "temperature", "stay as it was", got, remedy))
        self._add(images)

    def _add(self, images: Tensor) -> None:
        """Keeps images as they are until they are as many as the concepts; from then on their sums."""
        self.__dict__.pop("_result", None)
        self.n_images_ += len(images)
        self._chunks.append(images.clone())  # the caller's rows may change before scores are computed
        if self.n_images_ < len(self._concepts):
            return
        if self._sums is None:
            self._sums = covariance.Covariance(self._concepts, self.temperature)
        rows = torch.cat(self._chunks)
        whole = len(rows) // covariance.IMAGES * covariance.IMAGES
        for part in rows[:whole].split(covariance.IMAGES):
            self._sums.add(part)
        self._chunks = [rows[whole:].clone()]

    def _checked_concepts(self, where: str, concept_features: Any) -> Tensor:
        known = getattr(self, "_concepts", None)
        if concept_features is None:
            if known is None:
                remedy = "pass the text features of the dictionary"
                raise ValueError(
                    _errors.message(where, "concept_features", "come with the first images", "None", remedy)
                )
            return known
        concepts = _inputs.features(where, "concept_features", concept_features)
        if known is None:
            if len(concepts) < 2:
                remedy = "a softmax over one concept is 1"
                raise ValueError(_errors.message(where, "concept_features", "have 2 rows", concepts, remedy))
            return concepts
        if not torch.equal(unit(concepts), known):
            got, remedy = "others", "pass None, or fit anew"
            contract = "be those of the first call"
            raise ValueError(_errors.message(where, "concept_features", contract, got, remedy))
        return known

    def _check_numbers(self, where: str) -> None:
        for name in ("energy", "share"):
            check_number(where, name, getattr(self, name), above=0, most=1, remedy="0.95 and 0.99 are usual")
        check_number(where, "temperature", self.temperature, above=0, remedy="0.01 is usual")

    # -- scores ------------------------------------------------------------------------------------

    def _finish(self, verb: str, last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, kept concepts and spectrum of the images so far, on the CPU; last: the sums may go."""
        found = self.__dict__.get("_result")
        if found is not None:
            return found
        images = getattr(self, "n_images_", 0)
        if images < 2:
            raise NotFittedError(
                f"SpectralFilter: must be fitted to at least two images first, got {images}; "
                "call fit(image_features, concept_features)"
            )
        self._check_numbers(f"SpectralFilter.{verb}")
        with torch.no_grad(), torch.autocast(self._concepts.device.type, enabled=False):
            rows = torch.cat(self._chunks)
            if self._sums is None:
                found = covariance.gram_scores(rows, self._concepts, self.temperature, self.energy)
            else:
                sums = self._sums if last else self._sums.copy()
                sums.add(rows)
                found = sums.scores(self.energy)
        scores, spectrum = found[0].cpu(), found[1].cpu()
        total = float(scores.sum())
        if not total > _LEAST_TRACE:
            got, remedy = "images that say the same of every concept", "pass other images"
            contract = "differ from each other"
            raise ValueError(
                _errors.message(f"SpectralFilter.{verb}", "image_features", contract, got, remedy)
            )
        order = torch.argsort(scores, descending=True, stable=True)
        count = components(scores[order], self.share, total) or len(order)
        self._result = scores, order[:count], spectrum
        return self._result

    @property
    def scores_(self) -> Tensor:
        return self._finish("scores_")[0]

    @property
    def kept_(self) -> Tensor:
        return self._finish("kept_")[1]

    @property
    def spectrum_(self) -> Tensor:
        return self._finish("spectrum_")[2]

    # -- files -------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes scores, kept concepts, spectrum and parameters as safetensors; images are not kept.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            ValueError: not fitted. OSError: the file cannot be written.
        """
        scores, kept, spectrum = self._finish("save")
        numbers = {**self.get_params(), "images": self.n_images_, "width": self.n_features_in_}
        meta = {"format": self._format, "numbers": json.dumps(numbers, default=_numbers.for_json)}
        _files.save_tensors(path, {"scores": scores, "kept": kept, "spectrum": spectrum}, meta)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, which is named.
        """
        where = "SpectralFilter.load"
        tensors, meta = _schema.load(where, path, cls._format, cls._file, ("numbers",))
        with _schema.restoring(where, path):
            numbers = json.loads(meta["numbers"])
            params = {n: _schema.number(where, path, n, numbers[n], 0.0) for n in cls._parameter_names()}
            self = cls(**params)
            self._check_numbers("load")
            for name, least in (("images", 2), ("width", 1)):
                value = numbers[name]
                whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
                _schema.need(where, path, whole, f"a whole number from {least} up as {name}", value)
            sizes = {n: len(t) for n, t in tensors.items()}
            _schema.need(where, path, sizes["scores"] >= sizes["kept"] >= 1, "kept concepts", sizes)
            distinct = len(torch.unique(tensors["kept"])) == sizes["kept"]
            _schema.need(where, path, distinct, "distinct kept concepts", "repeated ones")
            self.n_images_, self.n_features_in_ = numbers["images"], numbers["width"]
            self._result = tensors["scores"], tensors["kept"], tensors["spectrum"]
        return self
