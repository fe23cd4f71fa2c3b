"""Registries.

Classes by name, built with checked options. Methods, detectors, refiners and backbones.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from sfp.errors import unknown_choice
from sfp.options import check_type


def registered_names(package: str) -> dict[str, str]:
    """The names that the files of a package register, each with the first sentence of its file;
    "" for one that is not listed.

    The files are read, not imported: a program says at once that there is no such name.
    """
    found: dict[str, str] = {}
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or ():
        for file in sorted(Path(folder).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            words = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
            classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
            for call in (each for node in classes for each in node.decorator_list):
                if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "register":
                    listed = not any(key.arg == "listed" for key in call.keywords)
                    found[call.args[0].value] = words if listed else ""
    return dict(sorted(found.items()))


class Registered:
    """Base of registered classes: annotated attributes of the class body are options, dataclass
    fields.

    An attribute without annotation would be no option, though it looks like one: it is refused,
    unless a base class declares it as a ``ClassVar``.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        declared = {name for base in cls.__mro__ for name in inspect.get_annotations(base)}
        for name, value in vars(cls).items():
            plain = not callable(value) and not isinstance(value, _DESCRIPTORS)
            if plain and not name.startswith("_") and name not in declared:
                raise TypeError(
                    f"{cls.__name__}.{name} has no type; write {name}: {type(value).__name__} = "
                    f"{value!r}"
                    f" for an option, or {name}: ClassVar = ... for a constant."
                )
        dataclasses.dataclass(kw_only=True, repr=False, eq=False)(cls)

    def __repr__(self) -> str:
        options = ", ".join(
            f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self)
        )
        return f"{self.name}({options})"


_DESCRIPTORS = (property, classmethod, staticmethod, functools.cached_property)


class Registry:
    """Classes of one kind by name. Importing the package that they live in fills it."""

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._classes: dict[str, type] = {}
        self._unlisted: set[str] = set()

    def register(self, name: str, listed: bool = True):
        """Class decorator: enter a class under ``name``; ``names`` leaves it out unless it is
        listed.

        Raises:
            ValueError: the name is taken.
        """

        def enter(cls: type) -> type:
            if name in self._classes:
                taken = self._classes[name].__module__
                raise ValueError(f"The {self.kind} name {name!r} is taken by {taken}.")
            cls.name = name
            self._classes[name] = cls
            if not listed:
                self._unlisted.add(name)
            return cls

        return enter

    def names(self) -> list[str]:
        _import_all(self.package)
        return sorted(set(self._classes) - self._unlisted)

    def get(self, name: str) -> type:
        """The class of that name.

        Raises:
            SFPError: unknown name; the message offers the closest one.
        """
        _import_all(self.package)
        if not isinstance(name, str) or name not in self._classes:
            raise unknown_choice(self.kind, name, self.names())
        return self._classes[name]

    def options(self, name: str) -> dict[str, Any]:
        """The options of a class with their defaults."""
        fields = dataclasses.fields(self.get(name))
        return {field.name: field.default for field in fields if field.kw_only}

    def check_options(
        self, name: str, options: Mapping[str, Any], others: Iterable[str] = ()
    ) -> None:
        """Raises SFPError for an option that the class lacks, or a value of another type.

        Args:
            others: see ``unknown_choice``.
        """
        known, hints = self.options(name), _hints(self.get(name))
        for option, value in options.items():
            if option not in known:
                raise unknown_choice(f"option of {self.kind} {name}", option, sorted(known), others)
            what = f"{option} of {self.kind} {name}"
            check_type(what, value, hints[option], known[option])

    def build(self, name: str, /, **options: Any) -> Any:
        """An object of that class.

        Raises:
            SFPError: unknown name or option, or a wrong value.
        """
        self.check_options(name, options)
        return self.get(name)(**options)


@functools.cache  # a folder is looked through once, not for each name
def _import_all(package: str) -> None:
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)
