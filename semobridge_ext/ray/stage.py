"""What the callables of Ray Data share: arguments checked on the driver, files that travel as bytes."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from semobridge_ext import _errors, _files

Result = TypeVar("Result")
Columns = dict[str, np.ndarray]


class Stage:
    """A callable from batch to batch; its constructor checks what it is given and loads no model.

    A model is loaded at the first batch, so that the driver can make the checks and an actor loads it once.
    """

    _files: ClassVar[tuple[str, ...]] = ()  # arguments that name a file

    @classmethod
    def arguments(cls, **given: Any) -> dict[str, Any]:
        """The constructor's arguments, checked here, with files as bytes: ``fn_constructor_kwargs`` of Ray.

        A mistake shows on the driver, before a cluster is asked; and no node needs the files.

        Args:
            given: the arguments of the constructor by name.

        Raises:
            As the constructor.
        """
        inspect.signature(cls).bind(**given)
        sent = dict(given)
        for name in cls._files:
            if sent.get(name) is not None:
                sent[name] = content(f"ray.{cls.__name__}", name, sent[name])
        cls(**sent)
        return sent

    @property
    def _name(self) -> str:
        return f"ray.{type(self).__name__}"

    def _check_names(self, **names: Any) -> None:
        for name, value in names.items():
            if not isinstance(value, str) or not value:
                got, remedy = _errors.describe(value), "pass the name of a column"
                raise TypeError(_errors.message(self._name, name, "be a non-empty str", got, remedy))

    def _check_words(self, **words: tuple[Any, tuple[str, ...]]) -> None:
        for name, (value, known) in words.items():
            if value not in known:
                remedy = "choose one of them"
                contract, got = f"be {' or '.join(known)}", _errors.describe(value)
                raise ValueError(_errors.message(self._name, name, contract, got, remedy))


def content(function: str, argument: str, value: Any) -> bytes:
    """What a file holds; bytes are the content already."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    path = Path(_files.place(value, function))
    if not path.is_file():
        remedy = "pass the path of a file that .save() wrote, or its bytes"
        raise FileNotFoundError(_errors.message(function, argument, "be an existing file", str(path), remedy))
    return path.read_bytes()


def loaded(data: bytes, name: str, load: Callable[[Path], Result]) -> Result:
    """What `load` makes of a file that holds these bytes; a mapped file stays readable after its removal."""
    with written(data, name) as path:
        return load(path)


@contextmanager
def written(data: bytes, name: str) -> Iterator[Path]:
    """A file of that name with these bytes, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="semobridge-") as place:
        path = Path(place) / name
        path.write_bytes(data)
        yield path


def usable_device(device: str | None) -> str:
    """Where a callable computes: what was asked for, else the GPU that Ray has given it, else the CPU."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")
