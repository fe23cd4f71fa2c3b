"""NACLIP: k-k attention with a Gaussian around each patch (Hajimiri et al., WACV 2025).

Its published table with refinement has PAMR on: ``refine=["PAMR"]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import self_attend
from sfp.options import Positive


@METHODS.register("NACLIP")
class NACLIP(Method):
    """Y = W_o concat(softmax(K K^T / sqrt(d_h) + Omega) V) + b_o; neither residual nor FFN.

    Args:
        sigma: width of the Gaussian in patches.
    """

    sigma: Positive = 5.0

    changes = Changes(
        "Hajimiri et al., WACV 2025", attention="k-k + Gaussian", residual=False, ffn=False
    )

    def tokens(self, windows: Tensor) -> Tensor:
        stream, block = self.stream(windows), self.last_block
        k, v = block.qkv(block.normed(stream), "kv")
        omega = self._omega(self.grid(windows), v)
        return block.project(self_attend(k, v, bias=omega))[:, self.patch_rows(windows)]

    def _omega(self, grid: tuple[int, int], v: Tensor) -> Tensor:
        """Omega (T, T) as values V (B, heads, T, d_h) lie; that of the last grid is kept."""
        wanted = grid, v.shape[2], v.dtype, v.device
        known, omega = getattr(self, "_kept", (None, None))
        if known != wanted:
            omega = gaussian(grid, self.sigma, self.trunk.prefix, v.device).to(v.dtype)
            appended = v.shape[2] - len(omega)
            omega = F.pad(omega, (0, appended, 0, appended))
            if not torch.compiler.is_compiling():  # a CUDA graph writes over its tensors
                self._kept = wanted, omega
        return omega


def gaussian(
    grid: tuple[int, int], sigma: float, prefix: int = 1, device: torch.device | None = None
) -> Tensor:
    """Omega, (P + N, P + N): exp(-distance^2 / (2 sigma^2)) of patches, 0 in the P tokens' before
    them.
    """
    rows, columns = torch.meshgrid(
        *(torch.arange(side, device=device).float() for side in grid), indexing="ij"
    )
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    squared = (places[:, None] - places[None]).square().sum(-1)
    omega = places.new_zeros(prefix + len(places), prefix + len(places))
    omega[prefix:, prefix:] = torch.exp(-squared / (2 * sigma**2))
    return omega
