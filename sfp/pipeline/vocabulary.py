"""Class names and their synonyms, from a list or a names file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from open_clip.tokenizer import get_clean_fn

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

    @property
    def words(self) -> list[list[str]]:
        """The query words of each class."""
        words: list[list[str]] = [[] for _ in self.names]
        for query, place in zip(self.queries, self.class_of_query, strict=True):
            words[place].append(query)
        return words

    def with_background(self, label: str) -> Vocabulary:
        """A class 0 without query words before the classes: what none of them fits.

        Raises:
            SFPError: the label is one of the names, or no name.
        """
        names = [label, *self.names]
        Vocabulary.from_names(names, "The background with the names")
        shifted = tuple(place + 1 for place in self.class_of_query)
        return Vocabulary((label.strip(), *self.names), self.queries, shifted)

    @classmethod
    def from_names(
        cls, names: Sequence[str | Sequence[str]], source: str = "the list of names"
    ) -> Vocabulary:
        """From names, each a word or a list of synonyms.

        Raises:
            SFPError: no names, one that is empty, no text or has control characters, or one
                that stands twice.
        """
        if isinstance(names, str) or not isinstance(names, (Sequence, np.ndarray)):
            shown = (
                f"the single text {names!r}"
                if isinstance(names, str)
                else f"a {type(names).__name__}"
            )
            raise SFPError(f"{source} is {shown}; give a list of names such as ['cat', 'sofa'].")
        groups = [
            [name] if isinstance(name, str) or not isinstance(name, Sequence) else list(name)
            for name in names
        ]
        if not groups:
            raise SFPError(f"{source} has no names; give at least one.")
        for number, group in enumerate(groups, start=1):
            for word in group or [""]:
                _check_word(word, source, number)
        groups = [[word.strip() for word in group] for group in groups]
        for number, group in enumerate(groups, start=1):
            read = [reading(word) for word in group]
            if len(set(read)) < len(read):
                word = next(word for word in read if read.count(word) > 1)
                raise SFPError(f"{source} names {word!r} twice at place {number}; keep it once.")
        firsts = [group[0] for group in groups]
        read = [reading(first) for first in firsts]
        if len(set(read)) < len(read):
            word = next(word for word in read if read.count(word) > 1)
            places = [str(i) for i, first in enumerate(read, start=1) if first == word]
            raise SFPError(
                f"{source} has the duplicate name {word!r} at places {', '.join(places)}; keep it "
                f"once."
            )
        return cls(
            names=tuple(firsts),
            queries=tuple(word for group in groups for word in group),
            class_of_query=tuple(i for i, group in enumerate(groups) for _ in group),
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike, separator: str = ", ") -> Vocabulary:
        """From a names file in UTF-8, with or without a byte order mark: one class per line,
        synonyms between separators.

        Raises:
            SFPError: no such file, not text, no separator, or names that ``from_names`` refuses.
        """
        if (
            not isinstance(path, (str, os.PathLike))
            or not isinstance(separator, str)
            or not separator
        ):
            raise SFPError(
                f"The names file is {path!r} with the separator {separator!r}; give name_path a "
                f"path and name_separator a text."
            )
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise SFPError(
                f"There is no names file {path}; set name_path to a file with one class per line."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise SFPError(
                f"The names file {path} can't be read ({error}); it must be UTF-8 text with one "
                f"class per line."
            ) from error
        lines = text.rstrip("\n").split("\n") if text.strip() else []
        return cls.from_names([line.split(separator) for line in lines], f"The names file {path}")

    @classmethod
    def of_config(
        cls,
        name_path: str | os.PathLike | None = None,
        names: Sequence[str | Sequence[str]] | None = None,
        name_separator: str = ", ",
    ) -> Vocabulary:
        """The classes that a config's ``model`` names, by ``name_path`` or ``names``.

        Raises:
            SFPError: neither, both, or what ``from_file`` and ``from_names`` refuse.
        """
        if name_path is not None and names is not None:
            raise SFPError(
                f"model.names is {names!r}, but model.name_path={name_path} names the classes, too;"
                " set one of them to None."
            )
        if name_path is not None:
            return cls.from_file(name_path, name_separator)
        where = "model.names (there is no model.name_path either)"
        return cls.from_names([] if names is None else names, where)


def reading(word: str) -> str:
    """What a name is compared by: words of one reading are one name.

    CLIP's tokenizer cleans a text first (ftfy with NFC, HTML's signs, spaces, small letters): what
    is equal then gives equal vectors. NFKC joins besides what differs in form alone, such as m²
    and m2, and signs that nobody sees are left out: two such classes would be a mistake.
    """
    text = unicodedata.normalize("NFKC", get_clean_fn("lower")(word)).casefold()
    seen = (c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return " ".join("".join(seen).split())


def _check_word(word: object, source: str, place: int) -> None:
    """Raises SFPError for what is no readable word."""
    if not isinstance(word, str):
        raise SFPError(
            f"{source} has {word!r} at place {place}; write a text there, or a list of synonyms."
        )
    if all(unicodedata.category(character)[0] in "ZC" for character in word):
        raise SFPError(
            f"{source} has an empty name at place {place}; write a word there or take the place "
            f"out."
        )
    strange = [
        c for c in word.strip() if unicodedata.category(c) in ("Cc", "Cs") or c in "\ufeff\u200b"
    ]
    if strange:
        raise SFPError(
            f"{source} has the character U+{ord(strange[0]):04X} in the name {word!r} at place "
            f"{place}; take it out."
        )
