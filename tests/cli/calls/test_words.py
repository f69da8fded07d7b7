"""A call has its command's options under its own words."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import semobridge_ext as sb
from semobridge_ext.cli.calls import discovering, inverting, reading, reporting, writing

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")

CALLS = {
    call.function: call
    for call in (
        writing.EXTRACT, writing.MAP, reading.RETRIEVE, reading.SEARCH, reporting.REPORT, inverting.INVERT,
        discovering.DISCOVER,
    )
}  # fmt: skip
# What a command has and its function has not: files of the result, and what only words need.
LEFT_OUT = {
    "extract": {"quiet", "dataset"}, "map_shards": {"quiet"}, "retrieve": {"csv", "json"},
    "search": {"out", "json"}, "report_shards": set(), "invert_shards": {"quiet"},
    "discover_shards": {"quiet", "dataset"},
}  # fmt: skip
OWN = {
    "extract": {"model", "workers", "progress"}, "map_shards": {"progress"}, "search": {"queries"},
    "invert_shards": {"model", "progress"}, "discover_shards": {"workers", "progress"},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_function_takes_what_its_command_takes(name: str) -> None:
    """A new option of the command is a new keyword, with its default, or stands in LEFT_OUT."""
    call = CALLS[name]
    taken = inspect.signature(getattr(sb, name)).parameters
    options = {call.keyword(dest): a for dest, a in call.actions.items() if dest not in LEFT_OUT[name]}
    assert set(taken) - OWN.get(name, set()) == set(options) - OWN.get(name, set())
    for keyword, action in options.items():
        default = taken[keyword].default
        if action.option_strings and not action.required and keyword not in OWN.get(name, set()):
            as_list = list(default) if isinstance(default, tuple) else default
            as_list = Path(default) if action.type is Path and default is not None else as_list
            taken_back = action.dest.startswith("no_")  # the keyword says it the other way round
            assert as_list == (not action.default if taken_back else action.default), keyword


@pytest.mark.parametrize("name", CALLS)
def test_no_option_stays_in_a_message(name: str) -> None:
    call = CALLS[name]
    flags = [flag for action in call.actions.values() for flag in action.option_strings]
    for flag in (flag for flag in flags if flag.startswith("--")):
        told = call.told(f"{call.command}: {flag} must stand, got --other OUT/x; 7; pass {flag} FILE")
        assert told.startswith(f"{name}: ") and "got --other OUT/x; 7;" in told
        assert "--" not in told.replace("--other", ""), told


def test_other_errors_are_left_alone() -> None:
    for error in (
        ValueError("topk: --out must be"),
        OSError(2, "none", "x"),
        KeyError(3),
        KeyboardInterrupt(),
    ):
        text, caught = str(error), None
        try:
            with CALLS["search"].own_words():
                raise error
        except BaseException as found:
            caught = found
        assert caught is error and str(caught) == text
