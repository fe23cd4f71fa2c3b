"""What a second frozen model is, and loading one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from sfp.clip.clip import FrozenCLIP, weights_sha256
from sfp.errors import SFPError


class Backbone(nn.Module):
    """A frozen model: windows (B, 3, H, W) normalised for CLIP to a map (B, C, h', w') float32.

    A plain callable can be one, too: ``Backbone(function)``.

    Attributes:
        name: what it was loaded as.
        fingerprint: SHA-256 of its weights, of a plain callable its name; part of a run's
            provenance.
    """

    loaders: ClassVar[dict[str, Callable[[FrozenCLIP], Backbone]]] = {}

    def __init__(self, function: Callable[[Tensor], Tensor] | None = None, name: str = ""):
        super().__init__()
        self.function = function
        self.name = name or getattr(function, "__qualname__", repr(function))

    @property
    def fingerprint(self) -> str:
        return weights_sha256(self) if any(True for _ in self.parameters()) else self.name

    def forward(self, windows: Tensor) -> Tensor:
        """The map of windows.

        Raises:
            SFPError: it returned something else.
        """
        found = self.encode(windows.float())
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(windows):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SFPError(
                f"{self.name} returned {shape} for {len(windows)} windows;"
                " it must return a map (B, C, h', w')."
            )
        return found.float()

    def encode(self, windows: Tensor) -> Tensor:
        return self.function(windows)

    @classmethod
    def register(cls, name: str):
        """Class decorator: enter a backbone that ``load_backbone`` makes by name, from the CLIP."""

        def enter(own: type[Backbone]) -> type[Backbone]:
            cls.loaders[name] = own
            return own

        return enter


def load_backbone(
    model: str | Callable[[Tensor], Tensor] | Backbone,
    clip: FrozenCLIP,
    option: str,
    weights: str | None = None,
) -> Backbone:
    """A frozen backbone on the CLIP's device and in its precision.

    Args:
        model: "colour", a timm ViT's name with its tag, or a callable from windows to a map.
        clip: whose windows it gets.
        option: the method's option that names it, for errors; its weights are ``option_weights``.
        weights: a local file for a timm model; its own download otherwise.

    Raises:
        SFPError: unknown name, another kind of model, or weights that can't be had.
    """
    if isinstance(model, Backbone):
        return model.to(clip.device)
    if callable(model):
        return Backbone(model)
    importlib.import_module("sfp.backbones.colour")
    if model in Backbone.loaders:
        backbone = Backbone.loaders[model](clip)
    else:
        from sfp.backbones.timm_vit import TimmViT

        backbone = TimmViT.load(model, clip, option, weights)
    backbone.name = model
    return backbone.eval().requires_grad_(False).to(clip.device)
