"""scikit-learn's convention for constructor arguments, without scikit-learn."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any


@cache
def real_parameters(estimator: type) -> frozenset[str]:
    """The constructor's arguments that are real numbers, or None by default."""
    known = inspect.signature(estimator.__init__).parameters.values()  # type: ignore[misc]
    return frozenset(p.name for p in known if p.annotation in ("float", "float | None", float))


class Parameters:
    """get_params and set_params over the arguments of the class's own constructor."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return sorted(p for p in inspect.signature(cls.__init__).parameters if p != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as they were given.

        Args:
            deep: scikit-learn's word; no argument holds an estimator, so it changes nothing.
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Any:
        """Replaces constructor arguments; what fit made stays until the next fit.

        Args:
            params: new values by name.

        Raises:
            ValueError: a name that the constructor does not take.
        """
        known = self._parameter_names()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}; "
                    f"valid parameters are: {known}"
                )
            setattr(self, name, value)
        return self
