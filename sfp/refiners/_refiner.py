"""What every refiner is: a callable on an image's stitched scores, or on its labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfp.options import parse_spec
from sfp.registry import Registered, Registry
from sfp.stages import Text, View

REFINERS = Registry("refiner", "sfp.refiners")


class Refiner(Registered, ABC):
    """Base class. A new refiner is one file in this folder that registers its class in
    ``REFINERS``.

    Annotated attributes of the class body are its options. It works with any method, after it.
    """

    @abstractmethod
    def __call__(self, scores: Tensor, view: View, text: Text) -> Tensor:
        """Refined scores (Q, H, W) float32 of scores at the label map's size."""


class LabelRefiner(Registered, ABC):
    """Base class of refiners that work on labels and probabilities, after all that work on scores.

    They stand in the same registry and the same list.
    """

    @abstractmethod
    def __call__(
        self, labels: Tensor, probabilities: Tensor, view: View, text: Text
    ) -> tuple[Tensor, Tensor]:
        """Refined labels (H, W) int64, and what stands for their probabilities (K, H, W) float32,
        of those after thresholds.
        """


def build_refiner(spec: str | Mapping[str, Any]) -> Refiner | LabelRefiner:
    """A refiner of ``NAME``, ``NAME:KEY=VALUE,...`` or ``dict(type=NAME, KEY=VALUE)``.

    Raises:
        SFPError: unknown name or option; the message offers the closest one.

    >>> build_refiner("PAMR:iterations=5")
    PAMR(iterations=5, dilations=(8, 16))
    """
    name, options = parse_spec(spec)
    return REFINERS.build(name, **options)


def list_refiners() -> list[str]:
    """Names of all refiners.

    >>> "PAMR" in list_refiners()
    True
    """
    return REFINERS.names()
