"""Class names and their synonyms, from a list or a names file (methods.md 3.3, 3.5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfp.errors import SFPError


@dataclass(frozen=True)
class Vocabulary:
    """Classes with one or more query words each.

    Attributes:
        names: the first word of each class.
        queries: all words, class after class.
        class_of_query: class index of each query, ascending.
    """

    names: tuple[str, ...]
    queries: tuple[str, ...]
    class_of_query: tuple[int, ...]

    @classmethod
    def from_names(cls, names: Sequence[str | Sequence[str]], source: str = "the list of names") -> Vocabulary:
        """From names, each a word or a list of synonyms.

        Raises:
            SFPError: no names, an empty name, or one that stands twice.
        """
        if isinstance(names, str):
            raise SFPError(f"{source} is the single text {names!r}; give a list of names such as ['cat', 'sofa'].")
        groups = [[name] if isinstance(name, str) else list(name) for name in names]
        if not groups:
            raise SFPError(f"{source} has no names; give at least one.")
        for number, group in enumerate(groups, start=1):
            if not group or any(not isinstance(word, str) or not word.strip() for word in group):
                raise SFPError(f"{source} has an empty name at place {number}; write a word there or take the place out.")
            if len(set(group)) < len(group):
                word = next(word for word in group if group.count(word) > 1)
                raise SFPError(f"{source} names {word!r} twice at place {number}; keep it once.")
        groups = [[word.strip() for word in group] for group in groups]
        firsts = [group[0] for group in groups]
        if len(set(firsts)) < len(firsts):
            word = next(word for word in firsts if firsts.count(word) > 1)
            places = [str(i) for i, first in enumerate(firsts, start=1) if first == word]
            raise SFPError(f"{source} has the duplicate name {word!r} at places {', '.join(places)}; keep it once.")
        return cls(
            names=tuple(firsts),
            queries=tuple(word for group in groups for word in group),
            class_of_query=tuple(i for i, group in enumerate(groups) for _ in group),
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike, separator: str = ", ") -> Vocabulary:
        """From a names file: one class per line, synonyms between separators.

        Raises:
            SFPError: no such file, not text, no separator, or names that ``from_names`` refuses.
        """
        if not separator:
            raise SFPError("The separator of synonyms is empty; set name_separator to what stands between them, such as ', '.")
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise SFPError(f"There is no names file {path}; set name_path to a file with one class per line.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SFPError(f"The names file {path} can't be read ({error}); it must be UTF-8 text with one class per line.") from error
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        return cls.from_names([line.split(separator) for line in lines], f"The names file {path}")
