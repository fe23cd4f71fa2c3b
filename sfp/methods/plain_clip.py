"""CLIP: the plain dense features, all blocks as trained (Radford et al., ICML 2021)."""

from __future__ import annotations

from torch import Tensor

from sfp.methods import METHODS, Changes, Method


@METHODS.register("CLIP")
class PlainCLIP(Method):
    """Y = X^L_pat."""

    changes = Changes("Radford et al., ICML 2021", layers="none")

    def tokens(self, windows: Tensor) -> Tensor:
        return self.stream(windows, last=self.trunk.layers)[:, self.patch_rows(windows)]
