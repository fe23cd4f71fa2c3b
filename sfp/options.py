"""Options as people type them: ``KEY=VALUE``, and ``NAME:KEY=VALUE,KEY=VALUE``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

from sfp.errors import SFPError


def parse_options(pairs: Iterable[str], where: str) -> dict[str, Any]:
    """Options from ``KEY=VALUE`` texts; a value that is no Python literal is a text.

    Args:
        where: what got the pairs, for the error, such as "--options".

    Raises:
        SFPError: a pair without "=" or without a key.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise SFPError(f"{where} got {pair!r}; write KEY=VALUE, such as sigma=3.")
        try:
            options[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # as literal_eval's page lists them
            options[key.strip()] = value
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
