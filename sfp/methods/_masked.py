"""Methods that know an image's region masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sfp.methods._method import METHODS, Method
from sfp.regions import check_masks, load_masks
from sfp.stages import Picture


class Masked(Method):
    """Base class: ``self.backbones["masks"](picture)`` gives the ``Regions`` of a picture.

    Args:
        masks: where they come from: a folder of PNG maps, .npz or .pth stacks, a COCO JSON file, a
            program such as "cut" or "sam2:points=32", or a callable; see ``load_masks``.
    """

    masks: str | os.PathLike | Mapping[str, Any] | Callable[[Picture], Any] = "cut"

    @classmethod
    def check_given(cls, given: Mapping[str, Any]) -> None:
        """Raises SFPError for masks that are nowhere, or a program's wrong options."""
        super().check_given(given)
        if "masks" in given:
            METHODS.check_options(cls.name, {"masks": given["masks"]})
            check_masks(given["masks"])

    def prepare(self) -> None:
        super().prepare()
        self.backbones["masks"] = load_masks(self.masks, self.clip)
