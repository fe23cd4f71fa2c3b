"""Options as people type them, ``KEY=VALUE`` and ``NAME:KEY=VALUE,KEY=VALUE``, and the types of their values."""

from __future__ import annotations

import ast
import collections.abc
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from sfp.errors import SFPError


def parse_options(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """Options from ``KEY=VALUE`` texts; a value that is no Python literal is a text.

    Args:
        where: what got the pairs, for the error, such as "--options".

    Raises:
        SFPError: a pair without "=" or without a key, or a key that stands twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SFPError(f"{where} got {pair!r}; write KEY=VALUE, such as sigma=3.")
        if key in options:
            raise SFPError(f"{where} names {key} twice, the second time as {pair!r}; keep one.")
        try:
            options[key] = ast.literal_eval(value)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            MemoryError,
            RecursionError,
        ):  # as literal_eval's page lists them
            options[key] = value
    return options


def split_spec(spec: str) -> tuple[str, list[str]]:
    """``NAME:KEY=VALUE,KEY=VALUE`` as the name and its pairs; commas inside a value, as in ``layers=[4,10]``, stay."""
    name, _, rest = spec.partition(":")
    return name, [pair for pair in re.split(r",(?=\s*\w+=)", rest) if pair]


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``NAME:KEY=VALUE,KEY=VALUE``.

    Raises:
        SFPError: see ``parse_options``.
    """
    name, pairs = split_spec(spec)
    return name, parse_options(pairs, repr(spec))


def check_type(what: str, value: Any, hint: Any, default: Any = None) -> None:
    """Raises SFPError where a value is not of a type, as annotations have it; a float must be finite.

    Args:
        what: names the option.
        default: stands in the message as an example, unless it is None.
    """
    if not _fits(value, hint):
        example = (
            f" such as {default!r}" if default is not None and not isinstance(default, bool) else ""
        )
        raise SFPError(f"{what} is {value!r}; give {_said(hint)}{example}.")


_SAID = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    dict: "a dict",
    type(None): "None",
    os.PathLike: "a path",
}


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in (tuple, collections.abc.Collection, collections.abc.Sequence):
        return (
            isinstance(value, collections.abc.Collection)
            and not isinstance(value, (str, bytes))
            and all(_fits(v, inner[0]) for v in value)
        )
    if hint in (int, float):
        number = isinstance(
            value, numbers.Integral if hint is int else numbers.Real
        ) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, origin or hint)


def _said(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_said(one) for one in inner)
    if origin is collections.abc.Callable:
        return "a callable"
    if origin in (tuple, collections.abc.Collection, collections.abc.Sequence):
        return f"a list, each {_said(inner[0])}"
    return _SAID.get(origin or hint, getattr(hint, "__name__", str(hint)))


def parse_names(text: str) -> list[str | list[str]]:
    """ "cat, sofa" or "cat; sofa, couch" (with synonyms) as a list of names."""
    if ";" in text:
        return [[word.strip() for word in group.split(",")] for group in text.split(";")]
    return [word.strip() for word in text.split(",")]
