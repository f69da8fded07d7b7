"""Between a Python function and the command whose path it takes: keywords in, errors in its own words out.

The command's own parser says what an option takes and what it is without being given, so that no default and
no bound stands twice.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from semobridge_ext import _errors, _numbers
from semobridge_ext.runtime.plain_modes import plain_device

_NOT = "no_"  # of an option that takes something back; its keyword says it the other way round
_PATHS = ("input", "output", "pretrained", "mapping", "image", "start")  # read or written, whatever the type
_PROSE = ("text", "template")  # what a person writes, whatever it begins with
# A word of the usage, unless it is part of a path.
_METAVAR = r"(?<![\w/.-]){}(?![\w/.-])"
# What may stand behind an option in a sentence as its value: a name, or one of the option's words.
_VALUE = r"(?: (?P<value>{}[A-Z][\w/.-]*))?"


def _words(action: argparse.Action) -> tuple[str, ...]:
    """What an option takes beside a number."""
    return getattr(action.type, "words", ())


class Call:
    """A function and its command.

    `names` says what the function calls a positional argument or option of the command, by the command's
    own name for it (`dest`), where the two differ; `others` what else its errors may speak of.
    """

    def __init__(
        self, function: str, command: str, module: Any, names: dict[str, str], others: dict[str, str]
    ) -> None:
        self.function, self.command, self._names, self._others = function, command, names, others
        parser = argparse.ArgumentParser()
        places = parser.add_subparsers()
        module.add_parser(places)
        (options,) = places.choices.values()
        self.actions = {action.dest: action for action in options._actions if action.dest != "help"}

    def keyword(self, dest: str) -> str:
        return self._names.get(dest, dest)

    def arguments(self, progress: bool | None = None, **given: Any) -> argparse.Namespace:
        """What the parser makes of these values, by the command's names for them."""
        args = argparse.Namespace(**{dest: action.default for dest, action in self.actions.items()})
        for dest, value in given.items():
            setattr(args, dest, self._checked(self.actions[dest], value))
        if progress is not None:
            args.quiet = None if progress else True
        return args

    # -- values --------------------------------------------------------------------------------------

    def _checked(self, action: argparse.Action, value: Any) -> Any:
        if value is None and action.default is None and not action.required:
            return None
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise self._wrong_kind(action, "be True or False", value)
            return value != action.dest.startswith(_NOT)
        if action.nargs in ("+", "*"):
            if isinstance(value, (str, os.PathLike)) or _numbers.is_whole(value):
                value = [value]
            if not isinstance(value, Iterable) or isinstance(value, (bytes, dict)):
                raise self._wrong_kind(action, "be one value or a list of them", value)
            found = [self._one(action, item) for item in value]
            if not found and action.default != []:
                raise ValueError(self._message(action, "hold one at least", value, "pass one"))
            return found
        return self._one(action, value)

    def _one(self, action: argparse.Action, value: Any) -> Any:
        if action.choices is not None:
            choices = list(action.choices)
            if not isinstance(value, str) or value not in choices:
                contract = f"be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
                raise ValueError(self._message(action, contract, value, "choose one"))
            return value
        if action.type is float:
            if not _numbers.is_real(value):
                raise self._wrong_kind(action, "be a number", value)
            return float(value)
        if action.type is Path or action.type is None:
            return self._text(action, value)
        if isinstance(value, str) and value in _words(action):
            return value
        return self._count(action, value)

    def _text(self, action: argparse.Action, value: Any) -> Any:
        is_path = action.type is Path or action.dest in _PATHS
        if not (isinstance(value, str) or (is_path and isinstance(value, os.PathLike))):
            raise self._wrong_kind(action, "be a str or a path" if is_path else "be a str", value)
        text = str(os.fspath(value))
        if action.dest not in _PROSE and text.startswith("~"):
            text = os.path.expanduser(text)
        return Path(text) if action.type is Path else text

    def _count(self, action: argparse.Action, value: Any) -> int:
        if not _numbers.is_whole(value):
            contract = " or ".join(["be an int", *map(repr, _words(action))])
            raise self._wrong_kind(action, contract, value)
        try:
            count: Any = action.type
            return int(count(str(value)))
        except argparse.ArgumentTypeError as error:
            contract = str(error).removeprefix("must ").partition(", got ")[0]
            raise ValueError(self._message(action, contract, value, "pass another number")) from None

    def _message(self, action: argparse.Action, contract: str, value: Any, remedy: str) -> str:
        return _errors.message(
            self.function, self.keyword(action.dest), contract, _errors.describe(value), remedy
        )

    def _wrong_kind(self, action: argparse.Action, contract: str, value: Any) -> TypeError:
        return TypeError(self._message(action, contract, value, "pass one"))

    # -- errors --------------------------------------------------------------------------------------

    @contextmanager
    def own_words(self, shown: dict[str, str] | None = None) -> Iterator[None]:
        """Errors of the command, which name its options, name the function's arguments.

        `shown` has what a caller passed by the path of the file that the command took in its place.
        """
        try:
            with plain_device():
                yield
        except Exception as error:
            text = error.args[0] if len(error.args) == 1 else None
            if isinstance(text, str) and text.startswith(f"{self.command}: "):
                for path, passed in (shown or {}).items():
                    text = text.replace(path, passed)
                error.args = (self.told(text),)
            raise

    def told(self, text: str) -> str:
        """An error of the command in the words of the function; what it got is left as it is."""
        body = text.removeprefix(f"{self.command}: ")
        head, got, rest = body.partition(", got ")
        value, end, remedy = rest.rpartition("; ")
        head, remedy = self._arguments(head), self._arguments(remedy)
        return f"{self.function}: {self._options(head + got + value + end + remedy)}"

    def _arguments(self, text: str) -> str:
        """INPUT, OUT and the like by the function's names."""
        for word, name in self._others.items():
            text = re.sub(_METAVAR.format(word), name, text)
        for dest, action in self.actions.items():
            if not action.option_strings and isinstance(action.metavar, str):
                text = re.sub(_METAVAR.format(action.metavar), self.keyword(dest), text)
        return text

    def _options(self, text: str) -> str:
        """`--some-option VALUE` as `some_option=VALUE`."""
        for dest, action in self.actions.items():
            for flag in action.option_strings:
                if flag.startswith("--"):
                    words = "".join(f"{word}|" for word in (action.choices or _words(action) or ("cpu",)))
                    value = "" if action.nargs == 0 else _VALUE.format(words)
                    pattern = rf"(?<![\w/-]){flag}(?![\w-]){value}"
                    text = re.sub(pattern, self._written(dest, action), text)
        return text

    def _written(self, dest: str, action: argparse.Action) -> Any:
        name = self.keyword(dest)

        def write(match: re.Match[str]) -> str:
            if action.nargs == 0:
                return f"{name}={not dest.startswith(_NOT)}"
            value = match["value"]
            if value is None:
                return name
            return f"{name}={value}" if value.isupper() else f"{name}={value!r}"

        return write
