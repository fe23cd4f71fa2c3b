"""NACLIP: k-k attention with a Gaussian around each patch (Hajimiri et al., WACV 2025; methods.md 1.7).

Its published table with refinement has PAMR on: ``pamr_iterations=10`` of the protocol.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._parts import self_attend


@METHODS.register("NACLIP")
class NACLIP(Method):
    """Y = W_o concat(softmax(K K^T / sqrt(d_h) + Omega) V) + b_o; neither residual nor FFN."""

    sigma: float = 5.0  # width of the Gaussian in patches

    card = Card("Hajimiri et al., WACV 2025", attention="k-k + Gaussian", residual=False, ffn=False)

    def prepare(self) -> None:
        if not self.sigma > 0:
            raise SFPError(
                f"sigma of NACLIP is {self.sigma}; give a width above 0 (5 patches as published)."
            )

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.stream(windows), self.last_block
        k, v = block.qkv(block.normed(stream), "kv")
        omega = gaussian(self.trunk.grid_of(*windows.shape[-2:]), self.sigma).to(v)
        return block.project(self_attend(k, v, bias=omega))[:, 1:]


def gaussian(grid: tuple[int, int], sigma: float) -> Tensor:
    """Omega, (1 + N, 1 + N): exp(-distance² / (2 sigma²)) between patches, 0 in the class token's row and column."""
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij"
    )
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    omega = torch.zeros(1 + len(places), 1 + len(places))
    omega[1:, 1:] = torch.exp(
        -torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").square()
        / (2 * sigma**2)
    )
    return omega
