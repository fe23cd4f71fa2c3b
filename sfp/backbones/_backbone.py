"""What a second frozen model is."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfp.clip.clip import weights_sha256
from sfp.errors import SFPError
from sfp.transfer import exact_convolutions, to_device


class Backbone(nn.Module):
    """A frozen model: windows (B, 3, H, W) normalised for CLIP to a map (B, C, h', w') float32.

    A plain callable can be one, too: ``Backbone(function)``.

    Attributes:
        name: what it was loaded as.
        heads: of its attention, whose channels lie side by side in the map's; None where that is
            not known.
        patch: side of its patches in pixels, whose multiples windows must be; None where it takes
            any size, or that is not known.
        fingerprint: SHA-256 of its weights, of a plain callable its name; part of a run's
            provenance.
    """

    def __init__(self, function: Callable[[Tensor], Tensor] | None = None, name: str = ""):
        super().__init__()
        self.function, self.heads, self.patch = function, None, None
        self.name = name or getattr(function, "__qualname__", repr(function))

    @functools.cached_property
    def fingerprint(self) -> str:
        return weights_sha256(self) if any(True for _ in self.parameters()) else self.name

    def forward(self, windows: Tensor) -> Tensor:
        """The map of windows.

        Raises:
            SFPError: it returned something else, or numbers that are not finite.
        """
        with exact_convolutions():
            found = self.encode(windows.float())
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(windows):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SFPError(
                f"{self.name} returned {shape} for {len(windows)} windows;"
                " it must return a map (B, C, h', w')."
            )
        if not bool(torch.isfinite(found).all()):
            precision = str(found.dtype).removeprefix("torch.")
            raise SFPError(
                f"{self.name} returned NaN or infinite numbers in {precision}; give"
                " precision='fp32' or 'bf16' (config: model.precision), or another model."
            )
        return to_device(found, windows.device).float()  # a callable may have its own

    def encode(self, windows: Tensor) -> Tensor:
        return self.function(windows)
