"""Loading a second model by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from sfp.backbones import sam_files
from sfp.backbones._backbone import Backbone
from sfp.backbones.colour import MeanColours
from sfp.backbones.timm_vit import Positions, Reads, TimmViT
from sfp.clip.clip import FrozenCLIP

BACKBONES: dict[str, type[Backbone]] = {"colour": MeanColours}  # every other name is timm's


def backbone_file(model: object, weights: str | None = None) -> Path | None:
    """The file that ``load_backbone`` or ``load_sam`` would read, None where there is none or it
    isn't here yet.
    """
    if weights:
        return sam_files.cached_file(weights) if Path(weights).expanduser().exists() else None
    if not isinstance(model, str) or model in BACKBONES:
        return None
    of_sam = "/" in model or Path(model).exists()  # timm's names have no slash
    return sam_files.cached_file(model) if of_sam else TimmViT.cached_file(model)


def load_backbone(
    model: str | Callable[[Tensor], Tensor] | Backbone,
    clip: FrozenCLIP,
    option: str,
    weights: str | None = None,
    *,
    reads: Reads = "tokens",
    layer: int | None = None,
    positions: Positions = "timm",
) -> Backbone:
    """A frozen backbone on the CLIP's device and in its precision.

    Args:
        model: "colour", a timm ViT's name with its tag, or a callable from windows to a map.
        clip: whose windows it gets.
        option: the method's option that names it, for errors; its weights are ``option_weights``.
        weights: a local file for a timm model; its own download otherwise.
        reads, layer, positions: see ``TimmViT``; a callable, and colours, give what they give.

    Raises:
        SFPError: unknown name, another kind of model, or weights that can't be had.
    """
    if isinstance(model, Backbone):
        return model.to(clip.device)
    if callable(model):
        return Backbone(model)
    if model in BACKBONES:
        backbone = BACKBONES[model]()
    else:
        backbone = TimmViT.load(
            model, clip, option, weights, reads=reads, layer=layer, positions=positions
        )
    backbone.name = model
    return backbone.eval().requires_grad_(False).to(clip.device)
