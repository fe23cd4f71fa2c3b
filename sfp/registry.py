"""A table from names to classes: methods and detectors register themselves in theirs."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any, get_type_hints

from sfp.errors import unknown_choice
from sfp.options import check_type


class Registry:
    """Classes of one kind by name. Importing the package that they live in fills the table."""

    def __init__(self, kind: str, package: str):
        self.kind, self.package = kind, package
        self._classes: dict[str, type] = {}

    def register(self, name: str):
        """Class decorator: enter a class under ``name``.

        Raises:
            ValueError: the name is taken.
        """

        def enter(cls: type) -> type:
            if name in self._classes:
                raise ValueError(
                    f"The {self.kind} name {name!r} is taken by {self._classes[name].__module__}."
                )
            cls.name = name
            self._classes[name] = cls
            return cls

        return enter

    def names(self) -> list[str]:
        self._import_all()
        return sorted(self._classes)

    def get(self, name: str) -> type:
        """The class of that name.

        Raises:
            SFPError: unknown name; the message offers the closest one.
        """
        self._import_all()
        if name not in self._classes:
            raise unknown_choice(self.kind, name, sorted(self._classes))
        return self._classes[name]

    def options(self, name: str) -> dict[str, Any]:
        """Options of a class with their defaults, those that its base classes take included."""
        found: dict[str, Any] = {}
        for cls in reversed(self.get(name).__mro__[:-1]):
            for parameter in inspect.signature(cls.__init__).parameters.values():
                if parameter.kind is parameter.KEYWORD_ONLY:
                    found[parameter.name] = parameter.default
        return found

    def check_options(self, name: str, options: dict[str, Any]) -> None:
        """Raises SFPError for an option that the class lacks, or a value of another type than its annotation.

        Where the class's ``choices`` name the values of an option, only these pass.
        """
        known = self.options(name)
        choices: dict[str, tuple] = {}
        hints: dict[str, Any] = {}
        for cls in reversed(self.get(name).__mro__):
            choices.update(vars(cls).get("choices", {}))
            hints.update(get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__))
        for option, value in options.items():
            if option not in known:
                raise unknown_choice(f"option of {self.kind} {name}", option, sorted(known))
            if option not in choices:
                check_type(
                    f"{option} of {self.kind} {name}", value, hints.get(option, Any), known[option]
                )
            elif isinstance(value, (list, dict)) or value not in choices[option]:
                raise unknown_choice(
                    f"{option} of {self.kind} {name}",
                    value,
                    [str(choice) for choice in choices[option]],
                )

    def _import_all(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
