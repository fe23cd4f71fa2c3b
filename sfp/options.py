"""Options as people type them, ``KEY=VALUE`` and ``NAME:KEY=VALUE,KEY=VALUE``, and their types.

Types are annotations: ``Annotated[int, Range(1)]`` is a whole number of at least 1,
``Literal["mean", "max"]`` one of two words.
"""

from __future__ import annotations

import argparse
import ast
import collections.abc
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from sfp.errors import SFPError, unknown_choice


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive unless ``above`` is the lower one."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most and value > self.above

    def __str__(self) -> str:
        if self.above > -math.inf:
            return f" above {self.above:g}"
        if self.most < math.inf:
            return f" from {self.least:g} to {self.most:g}"
        return f" of at least {self.least:g}"


Count = Annotated[int, Range(0)]
Positive = Annotated[float, Range(above=0)]
Share = Annotated[float, Range(0, 1)]


def parse_value(text: str) -> Any:
    """A typed value.

    A Python literal, ``true``, ``false`` and ``none`` in any case, else the text.
    """
    words = {"true": True, "false": False}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as its page lists
        listed = re.fullmatch(r"\[([\w ./,-]+)\]", text.strip())  # words without quotes
        return [parse_value(word.strip()) for word in listed[1].split(",")] if listed else text


def parse_options(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """Options from ``KEY=VALUE`` texts, each value by ``parse_value``.

    Args:
        where: what got the pairs, for the error, such as "--options".

    Raises:
        SFPError: a pair without "=" or without a key, or a key that stands twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not all(part.strip() for part in key.split(".")):
            raise SFPError(f"{where} got {pair!r}; write KEY=VALUE, such as sigma=3.")
        if key in options:
            raise SFPError(f"{where} names {key} twice, the second time as {pair!r}; keep one.")
        options[key] = parse_value(value)
    return options


def split_spec(spec: str) -> tuple[str, list[str]]:
    """``NAME:KEY=VALUE,KEY=VALUE`` as the name and its pairs; commas in ``layers=[4,10]`` stay."""
    name, _, rest = spec.partition(":")
    return name, [pair for pair in re.split(r",(?=\s*\w+=)", rest) if pair]


def parse_spec(spec: str | typing.Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of ``NAME:KEY=VALUE,KEY=VALUE``, or of ``dict(type=NAME, KEY=VALUE)``.

    Raises:
        SFPError: see ``parse_options``; or a dict without type.
    """
    if isinstance(spec, collections.abc.Mapping):
        options = dict(spec)
        if not isinstance(options.get("type"), str):
            raise SFPError(f"{options!r} has no type; write dict(type='NAME', KEY=VALUE).")
        return options.pop("type"), options
    name, pairs = split_spec(spec)
    return name, parse_options(pairs, repr(spec))


def add_config_options(
    parser: argparse.ArgumentParser, example: str = "model.clip=ViT-L/14"
) -> None:
    """``--cfg-options`` of every program that reads a config, for ``read_config``."""
    words = dict(nargs="+", metavar="KEY=VALUE", default=[])
    parser.add_argument("--cfg-options", **words, help=f"override config keys, such as {example}")


class HelpFormatter(argparse.HelpFormatter):
    """Help with each option's default, where it says something: a switch that is off, None and an
    empty list do not.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, help_text = action.default, action.help
        if help_text is None or default in (None, argparse.SUPPRESS) or isinstance(default, bool):
            return help_text
        words = default if isinstance(default, (list, tuple)) else [default]
        shown = " ".join(str(word) for word in words).replace("%", "%%")
        return f"{help_text} (default: {shown})" if shown else help_text


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for what a file of weights may not show, of every program that takes one."""
    add = parser.add_argument
    yes_or_no = argparse.BooleanOptionalAction
    add("--quick-gelu", action=yes_or_no, help="the activation, for a file that doesn't show it")
    add("--head-width", type=int, help="of the heads, for a file of no model of open_clip")
    for name in ("--pixel-mean", "--pixel-std"):
        numbers = dict(nargs=3, type=float, metavar=("R", "G", "B"))
        add(name, **numbers, help="of the pixels in [0, 1], for a file that doesn't show it")
    add("--weights-sha256", help="what the weights must be, see load_clip")


def weights_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What ``add_weights_arguments`` read, as arguments of ``load_clip``."""
    names = ("quick_gelu", "head_width", "pixel_mean", "pixel_std", "weights_sha256")
    return {name: getattr(args, name) for name in names}


def check_type(what: str, value: Any, hint: Any, default: Any = None) -> None:
    """Raises SFPError where a value is not of a type; a float must be finite.

    Args:
        what: names the option.
        hint: an annotation.
        default: stands in the message as an example, unless it is None.
    """
    if _fits(value, hint):
        return
    if typing.get_origin(hint) is typing.Literal:
        raise unknown_choice(what, value, [str(choice) for choice in typing.get_args(hint)])
    named = default is not None and not isinstance(default, bool) and _fits(default, hint)
    example = f" such as {default!r}" if named else ""
    raise SFPError(f"{what} is {value!r}; give {_words(hint)}{example}.")


_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    dict: "a dict",
    collections.abc.Mapping: "a dict",
    type(None): "None",
    os.PathLike: "a path",
}
_LISTS = (tuple, list, collections.abc.Collection, collections.abc.Sequence)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(value, inner[0]) and all(rule.holds(value) for rule in inner[1:])
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in _LISTS:
        listed = isinstance(value, collections.abc.Collection)
        return (
            listed
            and not isinstance(value, (str, bytes, dict))
            and all(_fits(one, inner[0]) for one in value)
        )
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number = _WORDS[inner[0]].replace("finite ", "")
        return number + "".join(map(str, inner[1:]))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_words(one) for one in inner)
    if origin is collections.abc.Callable:
        return "a callable"
    if origin in _LISTS:
        return f"a list, each {_words(inner[0])}"
    return _WORDS.get(origin or hint, getattr(hint, "__name__", str(hint)))
