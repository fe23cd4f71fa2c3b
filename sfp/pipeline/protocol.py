"""The protocol: how a method's scores become labels; part of every result."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, get_type_hints

from sfp.backbones import Backbone
from sfp.errors import SFPError
from sfp.options import Count, Range, Share, check_type
from sfp.refiners import LabelRefiner, Refiner, build_refiner


@dataclass(frozen=True)
class Protocol:
    """Windows, thresholds, refinement.

    Attributes:
        window: side of the sliding window in pixels; 0 for the whole image at once.
        stride: step between windows in pixels.
        logit_scale: factor of the averaged cosines before the softmax.
        sigmoid: probabilities of each class by itself, sigmoid(t cosine + b), so that a single word
            has one, too; the labels are the same. True takes t and b as the model was trained with
            a sigmoid (SigLIP); or give both, such as (100, -12).
        prob_thd: least probability of a pixel's class; others become class 0.
        area_thd: least share of a class among foreground pixels, None for no such rule.
        refine: refiners in their order, each a name or ``dict(type=NAME, OPTION=VALUE)``.
        pamr_iterations, pamr_dilations: PAMR after them, as the papers' configs name it; 0 for
            none.
    """

    window: int = 224
    stride: int = 112
    logit_scale: Annotated[float, Range(1e-6, 1e6)] = 40.0  # beyond it float32 overflows in time
    sigmoid: bool | tuple[float, ...] = False
    prob_thd: Share = 0.0
    area_thd: Share | None = None
    refine: tuple[str | Mapping, ...] = ()
    pamr_iterations: Count = 0
    pamr_dilations: tuple[Annotated[int, Range(1)], ...] = (8, 16)

    def __post_init__(self):
        hints = get_type_hints(Protocol, include_extras=True)
        for own in fields(Protocol):
            check_type(own.name, getattr(self, own.name), hints[own.name], own.default)
        if self.window < 0 or (self.window and not 0 < self.stride <= self.window):
            raise SFPError(
                f"window={self.window}, stride={self.stride} leave gaps;"
                " give 0 < stride <= window, or window=0 for whole images."
            )
        if not isinstance(self.sigmoid, bool):
            if len(self.sigmoid) != 2 or self.sigmoid[0] <= 0:
                raise SFPError(
                    f"sigmoid={self.sigmoid} must be True, False, or a scale above 0 and a bias,"
                    " such as (100, -12)."
                )
            object.__setattr__(self, "sigmoid", tuple(self.sigmoid))
        if not self.pamr_dilations:
            raise SFPError("pamr_dilations is empty; give distances in pixels, such as (8, 16).")
        object.__setattr__(self, "pamr_dilations", tuple(self.pamr_dilations))
        object.__setattr__(self, "refine", tuple(self.refine))
        self.refiners  # noqa: B018 - raises for a wrong one

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[Protocol, dict[str, Any]]:
        """The protocol of those options that are its own, and the others."""
        names = {field.name for field in fields(cls)}
        own = {key: value for key, value in options.items() if key in names}
        return cls(**own), {key: value for key, value in options.items() if key not in names}

    @classmethod
    def options_beside(cls, taker: Callable) -> list[str]:
        """The options that ``taker`` takes beside those of a method: its own and the protocol's."""
        return [*inspect.signature(taker).parameters, *(field.name for field in fields(cls))]

    @functools.cached_property
    def refiners(self) -> tuple[Refiner | LabelRefiner, ...]:
        """The refiners in their order.

        Raises:
            SFPError: unknown name or option, or PAMR by both keys.
        """
        found = [build_refiner(spec) for spec in self.refine]
        if self.pamr_iterations:
            if any(refiner.name == "PAMR" for refiner in found):
                raise SFPError(
                    f"refine names PAMR, and pamr_iterations is {self.pamr_iterations}, too;"
                    " leave one of them out."
                )
            options = dict(iterations=self.pamr_iterations, dilations=self.pamr_dilations)
            found.append(build_refiner(dict(type="PAMR", **options)))
        return tuple(found)

    @property
    def backbones(self) -> dict[str, Backbone]:
        """The refiners' further frozen models, by ``REFINER.WHAT``."""
        return {
            f"{refiner.name}.{what}": own
            for refiner in self.refiners
            for what, own in refiner.backbones.items()
        }

    def require_background(self, first: str, what: str) -> None:
        """Raises SFPError where thresholds would give pixels to a class 0 that is no background.

        Args:
            first: the name of class 0.
            what: whose class it is, for the error.
        """
        set_ones = [f"{k}={v}" for k in ("prob_thd", "area_thd") if (v := getattr(self, k))]
        if set_ones and first.lower() != "background":
            raise SFPError(
                f"{' and '.join(set_ones)} would give pixels to {first!r}, class 0 of {what}, which"
                " is no background; set prob_thd=0.0 and area_thd=None, or name a background."
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
