"""What wraps another method: its option ``base``, whose features and scores it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from torch import Tensor

from sfp.errors import SFPError
from sfp.methods._method import METHODS, PUBLISHED, Method, build_method, check_method
from sfp.options import parse_spec
from sfp.stages import Picture, Text, View


class Wrapper(Method):
    """Base class of methods that work on another method's scores.

    The options of every method (``purify``, ``pm``, ``registers`` ...) go to the base, and are the
    base's published ones where they are not given.

    Args:
        base: the method below, a name, ``NAME:OPTION=VALUE`` or ``dict(type=NAME, OPTION=VALUE)``.

    Attributes:
        wrapped: the method below.
        of_bases: options of bases as the wrapper's authors have them, where they are not given.
    """

    base: str | Mapping[str, Any] = "ClearCLIP"

    of_bases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def check_given(cls, given: Mapping[str, Any]) -> None:
        """Raises SFPError for a base that can't be wrapped, its wrong options, or those of the base
        that stand beside it.
        """
        known = METHODS.options(cls.name)
        base = given.get("base", known["base"])
        METHODS.check_options(cls.name, {"base": base})
        name, options = parse_spec(base)
        if not cls.can_wrap(name):
            raise SFPError(
                f"base of {cls.name} is {name}, whose scores are no cosines of single windows;"
                " give a method such as ClearCLIP."
            )
        check_method(name, options)
        of_base = set(METHODS.options(name)) - set(known)
        for option in sorted(of_base & set(given)):
            raise SFPError(
                f"{option} is an option of the base {name}, not of {cls.name}; write"
                f" base='{name}:{option}={given[option]}'."
            )

    @staticmethod
    def can_wrap(name: str) -> bool:
        """Whether a method of that name has cosines of single windows, and nothing after them."""
        below = METHODS.get(name)
        stages = ["part", "refine", "refine_pixels", "relabel"]
        stages += [] if below.defines("cosines") else ["decide"]
        changed = any(map(below.defines, stages))
        return not changed and not issubclass(below, Wrapper) and not below.joins_windows

    def __post_init__(self):
        name, options = parse_spec(self.base)
        own = self.of_bases.get(name, {})
        every = {f.name: getattr(self, f.name) for f in fields(Method) if f.kw_only}
        every["compiled"] = None
        given = {key: value for key, value in every.items() if value is not None}
        self.wrapped = build_method(name, self.clip, **{**every, **own, **given, **options})
        standard = {**self.wrapped._standard, **own}
        self.published = {option: standard[option] for option in PUBLISHED}
        super().__post_init__()
        self.purifier, self.appended = self.wrapped.purifier, self.wrapped.appended

    def prepare(self) -> None:
        self.detector_published = self.wrapped.detector_published
        self.backbones = self.wrapped.backbones

    def tokens(self, windows: Tensor) -> Tensor:
        return self.wrapped.tokens(windows)

    def features(self, windows: Tensor) -> Tensor:
        return self.wrapped.features(windows)

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        return self.wrapped.encode(windows)

    def fit(self, size: tuple[int, int], window: int, stride: int) -> tuple[int, int]:
        return self.wrapped.fit(size, window, stride)

    def look(self, picture: Picture) -> Any:
        return self.wrapped.look(picture)

    def score(self, view: View, text: Text) -> Tensor:
        return self.wrapped.cosines(view, text)
