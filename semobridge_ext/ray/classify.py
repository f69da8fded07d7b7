"""A saved few-shot estimator over a column of features, as a callable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from semobridge_ext import fewshot
from semobridge_ext._errors import message
from semobridge_ext.ray.columns import array, columns_of, objects, rows
from semobridge_ext.ray.stage import Columns, Stage, content, loaded


def load_estimator(function: str, path: Path) -> Any:
    """The estimator whose ``save`` wrote a file, by what the file says of itself."""
    from safetensors import SafetensorError, safe_open

    known = {f"semobridge-ext {name} 1": getattr(fewshot, name) for name in fewshot.__all__}
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format")
    except SafetensorError as error:
        got, remedy = f"a damaged or foreign file ({error})", "write it again with .save()"
        raise ValueError(message(function, "estimator", "be a saved estimator", got, remedy)) from error
    if kind not in known:
        contract = f"be a saved {', '.join(fewshot.__all__)}"
        remedy = "fit one and write it with .save()"
        raise ValueError(message(function, "estimator", contract, f"format {kind!r}", remedy))
    return known[kind].load(path)


class Classify(Stage):
    """Predicts the class of every row of a batch: a callable for ``Dataset.map_batches``.

    Args:
        estimator: what the ``save`` of an estimator of ``semobridge_ext`` wrote (SeMoBridgeClassifier,
            TipAdapter, GDA and the others): its path, or the file's bytes.
        column: the features, [N, D] of any float dtype, finite.
        output: the column that is written, N class names. "predicted" and not "label", the column of the
            classes that `extract` knows.
        scores: a second column, [N, C] logits in the order of ``classes_``; None: none.

    Raises:
        TypeError: a column name that is no str. FileNotFoundError: no such file. ValueError: a file of
            another kind, or a damaged one; at a batch, another width, or NaN or infinity (the rows are
            named).

    Numerics: those of the estimator's ``predict`` and ``logits`` on a CPU, each row independent of its batch.

    Memory: the estimator, once an actor, and its logits of a batch.

    Example:
        >>> import numpy as np, semobridge_ext as sb
        >>> shots = np.asarray([[2.0, 0.0], [0.0, 3.0]], np.float32)
        >>> sb.NearestClassMean().fit(shots, ["cat", "dog"]).save("means.safetensors")
        >>> classify = sb.ray.Classify("means.safetensors", scores="scores")
        >>> import os; os.remove("means.safetensors")
        >>> found = classify({"features": shots})
        >>> found["predicted"].tolist(), found["scores"].shape
        (['cat', 'dog'], (2, 2))
    """

    _files = ("estimator",)

    def __init__(
        self,
        estimator: Any,
        *,
        column: str = "features",
        output: str = "predicted",
        scores: str | None = None,
    ) -> None:
        self._check_names(column=column, output=output)
        if scores is not None:
            self._check_names(scores=scores)
        data = content(self._name, "estimator", estimator)
        self._estimator = loaded(data, "estimator.safetensors", lambda p: load_estimator(self._name, p))
        self._column, self._output, self._scores = column, output, scores

    def __call__(self, batch: Any) -> Columns:  # columns of N rows
        columns = columns_of(self._name, batch)
        given = rows(self._name, "column", columns, self._column)
        classes = self._estimator.classes_
        logits: np.ndarray | None = None
        if not len(given):
            found, logits = classes[:0], np.empty((0, len(classes)), np.float32)
        else:
            found = self._estimator.predict(array(given))
            if self._scores is not None:
                logits = self._estimator.logits(array(given))
        names = found if found.dtype != object else objects(found.tolist())
        columns[self._output] = names
        if self._scores is not None and logits is not None:
            columns[self._scores] = np.ascontiguousarray(logits)
        return columns
