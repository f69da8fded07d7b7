"""Parameters in a notebook's view: shapes and short lists in place of values."""

from __future__ import annotations

from typing import Any

from semobridge_ext._parameters import shown


class _Text:
    """A value whose repr is a short text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Displayed:
    """Shortens what ``BaseEstimator`` shows of an estimator's parameters and fitted attributes."""

    def _get_params_html(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_params_html(*args, **kwargs)  # type: ignore[misc]
        for name, value in found.items():
            found[name] = _Text(shown(value))
        return found
