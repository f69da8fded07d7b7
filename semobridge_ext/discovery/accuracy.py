"""gcd_accuracy: clusters matched to classes by one assignment over all images, then read by kind of class."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from semobridge_ext import _errors, _inputs, _numbers

_NAME = "gcd_accuracy"
_LARGEST_TABLE = 1 << 14  # codes up to here stand in the table as they are


class GCDAccuracy(NamedTuple):
    """Fractions of images whose cluster is matched with their class.

    Args:
        all: of all images.
        old: of the images of old classes; NaN where there is none.
        new: of the images of new classes; NaN where there is none.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.gcd_accuracy([0, 0, 1], [5, 5, 3], old_classes=[0]).all
        1.0
    """

    all: float
    old: float
    new: float


def gcd_accuracy(labels: Any, predictions: Any, old_classes: Iterable[Hashable]) -> GCDAccuracy:
    """Accuracy of generalized category discovery: All, Old and New.

        w[p, c] = number of images with prediction p and class c
        σ = argmax over one-to-one maps Σ_p w[p, σ(p)]        one assignment, over all images
        All = Σ_p w[p, σ(p)] / N        Old, New: the same matches among the images of old, of new classes

    The assignment knows nothing of old and new ("v2" of the field's programs): an image of an old class may
    be claimed by a new one's cluster. Names of clusters mean nothing; that a prediction is spelled like a
    class does not count.

    Args:
        labels: N true classes, any hashable names: a list, an integer array or tensor.
        predictions: N clusters, alike; any number of them.
        old_classes: the classes that had labelled images. A class that no image has does no harm.

    Returns:
        GCDAccuracy(all, old, new), three fractions.

    Raises:
        ImportError: SciPy is missing.
        TypeError: old_classes is a single text, or names that cannot be hashed.
        ValueError: no image, or another number of predictions than of labels.

    Numerics: exact counts. Where several assignments match equally many images, Old and New may depend on
        which one is taken: it is SciPy's on a square table of size max(label, prediction) + 1 for integers
        from 0 up, as in the field's programs, and of the sorted names otherwise.

    Memory: the table, at most (labels + predictions)² counts.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.gcd_accuracy(["cat", "cat", "dog", "emu"], [1, 1, 0, 0], old_classes=["cat"])
        GCDAccuracy(all=0.75, old=1.0, new=0.5)
    """
    true, found = _names("labels", labels), _names("predictions", predictions)
    if len(found) != len(true):
        remedy = "one prediction per label"
        contract = f"hold {len(true)} values"
        raise ValueError(_errors.message(_NAME, "predictions", contract, f"{len(found)} values", remedy))
    if not true:
        remedy = "score at least one image"
        raise ValueError(_errors.message(_NAME, "labels", "hold a value", "none", remedy))
    if isinstance(old_classes, (str, bytes)):
        remedy = "pass [...] around it"
        raise TypeError(_errors.message(_NAME, "old_classes", "be several names", old_classes, remedy))
    old_names = set(_names("old_classes", old_classes))
    rows, columns, size = _codes(true, found)
    table = np.zeros((size, size), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    matched = _assignment(table)[rows] == columns
    old = np.fromiter((name in old_names for name in true), dtype=bool, count=len(true))
    return GCDAccuracy(float(matched.mean()), _mean(matched[old]), _mean(matched[~old]))


def _names(argument: str, values: Any) -> Sequence[Hashable]:
    given = list(values) if argument == "old_classes" and isinstance(values, Set) else values
    return _inputs.names(_NAME, given, argument=argument)


def _codes(true: Sequence[Any], found: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, int]:
    """Row (prediction) and column (class) of each image, and the size of the square table."""
    both = (*true, *found)
    if all(_numbers.is_whole_valued(v) for v in both) and min(both) >= 0 and max(both) < _LARGEST_TABLE:
        rows, columns = np.asarray(found, dtype=np.int64), np.asarray(true, dtype=np.int64)
        return rows, columns, int(max(both)) + 1
    classes, clusters = _inputs.ordered(true), _inputs.ordered(found)
    rows = _inputs.encode(_NAME, found, clusters).numpy()
    columns = _inputs.encode(_NAME, true, classes).numpy()
    return rows, columns, max(len(classes), len(clusters))


def assignment_solver(where: str) -> Any:
    """SciPy's, or the command that installs it."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError(
            f"{where}: SciPy must be installed for the assignment; pip install 'semobridge-ext[discovery]'"
        ) from error
    return linear_sum_assignment


def _assignment(table: np.ndarray) -> np.ndarray:  # [n, n] -> [n]: the class of each cluster
    return assignment_solver(_NAME)(table.max() - table)[1]


def _mean(matched: np.ndarray) -> float:
    return float(matched.mean()) if len(matched) else float("nan")
