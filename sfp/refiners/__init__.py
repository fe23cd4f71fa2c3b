"""Steps on the stitched scores that know the image and the text, one file each."""

from sfp.refiners._refiner import (
    REFINERS,
    LabelRefiner,
    Refiner,
    build_refiner,
    list_refiners,
)

__all__ = ["REFINERS", "LabelRefiner", "Refiner", "build_refiner", "list_refiners"]
