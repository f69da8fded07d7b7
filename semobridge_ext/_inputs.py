"""Features and labels as users pass them: tensors, arrays or lists; labels are any hashable names."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, KeysView, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors


def numbers(function: str, argument: str, value: Any) -> Tensor:
    """Real numbers of any shape: a tensor as it is, an array or a list as one of a float dtype."""
    if isinstance(value, Tensor):
        return value
    if fields := getattr(value, "_fields", None):  # class text features, given whole
        raise TypeError(_errors.whole_result(function, argument, value, fields))
    if hasattr(value, "toarray") or type(value).__module__.startswith("scipy.sparse"):
        remedy = "convert it with .toarray()"
        raise TypeError(
            _errors.message(function, argument, "be dense, not sparse data", "a sparse matrix", remedy)
        )
    if isinstance(value, (str, bytes, Mapping, set, frozenset)) or (
        not hasattr(value, "__array__") and isinstance(value, Iterator)
    ):
        contract, remedy = "be rows of numbers", "pass a tensor, an array or a list of rows"
        raise TypeError(_errors.message(function, argument, contract, _errors.describe(value), remedy))
    array = array_of(function, argument, value)
    if array.dtype.kind in "mM":
        contract, remedy = "hold numbers", "convert them yourself"
        raise TypeError(_errors.message(function, argument, contract, f"{array.dtype} values", remedy))
    if array.dtype.kind == "c":
        raise ValueError(f"{function}: {argument} must be real. Complex data not supported; take .real")
    if array.dtype.kind not in "fiub":
        try:
            array = array.astype(np.float64)
        except TypeError as error:  # what scikit-learn says of such input, and expects
            raise TypeError(
                f"{function}: {argument} argument must be a string or a number: {error}"
            ) from error
        except ValueError as error:
            contract, remedy = "hold numbers", "convert the rows to floats first"
            raise ValueError(
                _errors.message(function, argument, contract, f"others ({error})", remedy)
            ) from error
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return _arrays.shared(array)


def array_of(function: str, argument: str, value: Any) -> np.ndarray:
    """An array of what is no tensor; a list of tensors is taken apart by torch, which knows their dtypes."""
    try:
        if isinstance(value, (list, tuple)) and value and all(isinstance(row, Tensor) for row in value):
            rows = torch.stack([row.detach().cpu() for row in value])
            value = rows.float() if rows.dtype is torch.bfloat16 else rows
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged, or of parts that do not go together
        contract, remedy = "be rows of one length", "pad or drop those of another"
        told = " ".join(str(error).split())[:120]
        raise ValueError(_errors.message(function, argument, contract, f"others ({told})", remedy)) from error


def features(
    function: str,
    argument: str,
    value: Any,
    width: int | None = None,
    allow_empty: bool = False,
    finite: bool = True,
) -> Tensor:  # [N, D]
    """A finite 2-D tensor of a float dtype; arrays and lists are converted as scikit-learn does."""
    value = numbers(function, argument, value)
    x = _errors.check_float_tensor(function, argument, value).detach()
    if x.dim() != 2:
        remedy = "Reshape your data: one row per image, encode_image(...).flatten(1)"
        raise ValueError(_errors.message(function, argument, "be 2-D", x, remedy))
    if x.shape[1] == 0:
        got, remedy = _too_few("feature", x), "pass one column per feature"
        raise ValueError(_errors.message(function, argument, "have columns", got, remedy))
    if x.shape[0] == 0 and not allow_empty:
        got, remedy = _too_few("sample", x), "pass at least one row"
        raise ValueError(_errors.message(function, argument, "have rows", got, remedy))
    if width is not None and x.shape[1] != width:
        raise ValueError(
            f"{function}: X has {x.shape[1]} features, but it is expecting {width} features as input; "
            "check that they come from the same model"
        )
    _errors.check_values(function, argument, x)
    if finite and not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).any(dim=1)
        raise ValueError(
            f"{function}: {argument} must be finite, got NaN or inf in {int(bad.sum())} of {len(bad)} rows "
            f"(first: {int(bad.nonzero()[0])}); drop these rows"
        )
    return x


def _too_few(what: str, x: Tensor) -> str:
    """In the words that scikit-learn's checks look for."""
    return f"0 {what}(s) (shape={tuple(x.shape)}) while a minimum of 1 is required"


def names(
    function: str,
    y: Any,
    rows: int | None = None,
    *,
    unlabelled: bool = False,
    argument: str = "y",
    of: str = "X",
) -> list[Hashable]:
    """The labels of the rows of `of`, hashable Python values; `unlabelled`: None marks a row without one."""
    if y is None:
        raise ValueError(f"{function}: requires {argument} to be passed, but the target {argument} is None")
    if isinstance(y, Tensor):
        y = _label_array(function, argument, y)
    if isinstance(y, (str, bytes, Mapping, set, frozenset)) or not (
        isinstance(y, Iterable) or hasattr(y, "__array__")
    ):
        contract = "be a list of class names in the order of the rows"
        remedy = f"pass one {'name' if argument == 'class_names' else 'label'} per row"
        raise TypeError(_errors.message(function, argument, contract, _errors.describe(y), remedy))
    if isinstance(y, np.ndarray) or hasattr(y, "__array__"):
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1:
            _warn_column()
            y = y[:, 0]
        if y.ndim != 1:
            raise ValueError(
                f"{function}: {argument} must be 1-D, got shape {y.shape}; pass one label per row"
            )
        if y.dtype.kind == "f":
            if not np.isfinite(y).all():
                raise ValueError(f"{function}: {argument} must be finite, got NaN or inf; drop these rows")
            if not (y == np.round(y)).all():
                raise ValueError(
                    f"{function}: Unknown label type: continuous; {argument} must hold class "
                    "names, not real numbers"
                )
        y = y.tolist()
    values = [value.item() if isinstance(value, np.generic) else value for value in y]
    if rows is not None and len(values) != rows:
        raise ValueError(
            f"{function}: {argument} must have {rows} labels, one per row of {of}, got {len(values)}; align "
            "them"
        )
    for value in values:
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                _errors.message(
                    function, argument, "hold hashable class names", value, "use strings or integers"
                )
            ) from None
    missing = [i for i, v in enumerate(values) if _is_nan(v) or (v is None and not unlabelled)]
    if missing:
        kind = "NaN" if unlabelled else "None or NaN"
        got = f"{kind} in {len(missing)} of {len(values)} places (first: {missing[0]})"
        remedy = "None stands for a row without a label" if unlabelled else "drop these rows"
        raise ValueError(_errors.message(function, argument, "name a class in every place", got, remedy))
    return values


def pair(function: str, argument: str, value: Any, what: str) -> tuple[Any, Any]:
    """Two things that belong together, such as features and their labels."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        got = f"{len(value)} things" if isinstance(value, (tuple, list)) else _errors.describe(value)
        raise TypeError(_errors.message(function, argument, f"be {what}", got, "pass both in one tuple"))
    return value[0], value[1]


def _label_array(function: str, argument: str, y: Tensor) -> np.ndarray:
    """A tensor of labels as an array of its numbers."""
    if y.is_nested or y.layout is not torch.strided or y.is_complex():
        contract, remedy = "be a dense 1-D tensor of labels", "pass one label per row"
        raise TypeError(_errors.message(function, argument, contract, y, remedy))
    _errors.check_values(function, argument, y)
    y = y.detach().cpu()
    return (y.float() if y.dtype is torch.bfloat16 else y).numpy()


def weights(function: str, value: Any, rows: int) -> Tensor | None:  # [M] float64, on the CPU
    """Weights of rows, as scikit-learn's ``sample_weight``; None: all alike."""
    if value is None:
        return None
    name = "sample_weight"
    given = numbers(function, name, value).detach()
    if given.ndim != 1 or len(given) != rows:
        remedy = f"pass one weight per row, [{rows}]"
        raise ValueError(_errors.message(function, name, "be 1-D, like y", f"{list(given.shape)}", remedy))
    _errors.check_values(function, name, given)
    found = given.to("cpu", torch.float64)
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        contract, remedy = "be finite and ≥ 0", "leave rows out by a weight of zero"
        raise ValueError(_errors.message(function, name, contract, f"{float(found.min()):g}", remedy))
    if not bool((found > 0).any()):
        remedy = "None weighs all rows alike"
        raise ValueError(
            _errors.message(function, name, "weigh a row above zero", "zero in every place", remedy)
        )
    return found


def codes(function: str, labels: Mapping[str, Any], device: torch.device | None) -> list[Any]:
    """Labels as int64 tensors, arguments by name: whole numbers as they are, names numbered in common."""
    found = [_arrays.whole(value, device) for value in labels.values()]
    if all(isinstance(value, Tensor) and value.dtype is not torch.uint64 for value in found):
        return found
    given = []
    for name, value in labels.items():
        if not isinstance(value, Tensor) and (isinstance(value, (str, bytes)) or not is_listed(value)):
            contract, remedy = "hold whole numbers or names", "pass an int64 tensor, an array or a list"
            raise TypeError(_errors.message(function, name, contract, _errors.describe(value), remedy))
        given.append(names(function, value, argument=name))
    place: dict[Hashable, int] = {}
    return [
        torch.tensor([place.setdefault(name, len(place)) for name in part], dtype=torch.int64, device=device)
        for part in given
    ]


def is_unordered(value: Any) -> bool:
    """A set, in which nothing stands before anything; the keys of a dictionary have an order."""
    return isinstance(value, Set) and not isinstance(value, KeysView)


def is_listed(value: Any) -> bool:
    """An array, or a sequence that is no text."""
    return _arrays.is_array(value) or isinstance(value, Sequence)


def _is_nan(value: Any) -> bool:
    """NaN, or what pandas has for a missing text or date."""
    if isinstance(value, (float, np.floating)):
        return bool(value != value)
    return type(value).__name__ in ("NAType", "NaTType")


def _warn_column() -> None:
    import warnings

    category: type[Warning] = UserWarning
    if "sklearn.exceptions" in sys.modules:
        category = sys.modules["sklearn.exceptions"].DataConversionWarning
    text = "A column-vector y was passed when a 1d array was expected; it is flattened"
    warnings.warn(text, category, stacklevel=4)


def ordered(values: Iterable[Hashable]) -> list[Hashable]:
    """The distinct values, sorted where they can be, in order of appearance otherwise."""
    distinct = list(dict.fromkeys(values))
    try:
        return sorted(distinct)  # type: ignore[type-var]
    except TypeError:
        return distinct


def order_of(values: Sequence[Hashable]) -> Tensor | None:  # [C] int64
    """Where each of the sorted values stands among the given ones; None: they stand in order."""
    place = {value: i for i, value in enumerate(values)}
    order = [place[value] for value in ordered(values)]
    if order == list(range(len(order))):
        return None
    return torch.tensor(order, dtype=torch.int64, device="cpu")


def as_array(values: Sequence[Hashable]) -> np.ndarray:
    """A 1-D array of class names; tuples stay whole, and so do numbers that int64 does not reach."""
    if (
        all(isinstance(v, (str, int, float, np.generic)) for v in values)
        and len({type(v) for v in values}) == 1
        and not any(isinstance(v, str) and v.endswith("\0") for v in values)  # NumPy would drop it
        and not any(isinstance(v, int) and not -(1 << 63) <= v < 1 << 63 for v in values)
    ):
        return np.asarray(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def encode(
    function: str,
    values: Sequence[Hashable],
    classes: Sequence[Hashable],
    unknown: str = "; pass labels of these classes",
) -> Tensor:  # [N] int64
    """Positions of the labels in the class list; `unknown` is what the error says of another label."""
    position = {name: i for i, name in enumerate(classes)}
    try:
        return torch.tensor([position[v] for v in values], dtype=torch.int64, device="cpu")
    except KeyError as error:
        known = ", ".join(repr(c) for c in classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise ValueError(
            f"{function}: y must hold names of the classes ({known}), got {error.args[0]!r}{unknown}"
        ) from None
