"""CLIP: the plain dense features, all blocks as trained (methods.md 1.1)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods.method import METHODS, Method


@METHODS.register("CLIP")
class PlainCLIP(Method):
    """Y = X^L_pat."""

    def tokens(self, windows: Tensor) -> Tensor:
        return self.trunk.run(windows, self.hooks())[:, 1:]
