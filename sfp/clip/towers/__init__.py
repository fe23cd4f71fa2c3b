"""Image towers, one file for each family, and what the trunk needs of them."""

from __future__ import annotations

from torch import nn

from sfp.clip.towers._tower import Tower
from sfp.clip.towers.open_clip_vit import OpenCLIPTower
from sfp.clip.towers.timm_vit import TimmTower
from sfp.errors import SFPError

FAMILIES: tuple[type[Tower], ...] = (OpenCLIPTower, TimmTower)

__all__ = ["FAMILIES", "Tower", "family_of"]


def family_of(visual: nn.Module) -> type[Tower]:
    """The family of an image tower that open_clip built.

    Raises:
        SFPError: none of them, a ResNet for example.
    """
    for family in FAMILIES:
        if family.takes(visual):
            return family
    raise SFPError(
        f"The image tower {type(visual).__name__} is no plain ViT; give a model such as ViT-B-16,"
        " ViT-B-16-SigLIP or EVA02-B-16 (sfp.list_models() names all)."
    )
