"""CLIP: the plain dense features, all blocks as trained (Radford et al., ICML 2021; methods.md 1.1)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods import METHODS, Card, Method


@METHODS.register("CLIP")
class PlainCLIP(Method):
    """Y = X^L_pat."""

    card = Card("Radford et al., ICML 2021", layers="none")

    def tokens(self, windows: Tensor) -> Tensor:
        return self.stream(windows, last=self.trunk.layers)[:, 1:]
