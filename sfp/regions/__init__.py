"""Region masks of an image: given in files, or made by a program and kept on disk."""

from sfp.regions._program import PROGRAMS, MaskProgram
from sfp.regions.regions import Regions, nearest
from sfp.regions.sources import (
    GivenMasks,
    MadeMasks,
    MaskSource,
    check_masks,
    list_mask_programs,
    load_masks,
    mask_files,
    masks_on_disk,
)

__all__ = [
    "PROGRAMS",
    "GivenMasks",
    "MadeMasks",
    "MaskProgram",
    "MaskSource",
    "Regions",
    "check_masks",
    "list_mask_programs",
    "load_masks",
    "mask_files",
    "masks_on_disk",
    "nearest",
]
