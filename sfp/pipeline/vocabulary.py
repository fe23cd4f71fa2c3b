"""Class names and their synonyms as the queries of a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sfp.errors import SFPError
from sfp.names import check_names, read_class_list


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
        cls, names: Sequence[str | Sequence[str]], source: str = "The list of names"
    ) -> Vocabulary:
        """From names, each a word or a list of synonyms.

        Raises:
            SFPError: no names, one that is empty, no text or has control characters, or one
                that stands twice.
        """
        groups = check_names(names, source)
        return cls(
            names=tuple(group[0] for group in groups),
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
        return cls.from_names(read_class_list(path, separator), f"The names file {path}")

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
