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
        omega = gaussian(self.grid(windows), self.sigma, self.trunk.prefix).to(v)
        appended = v.shape[2] - len(omega)
        omega = F.pad(omega, (0, appended, 0, appended))
        return block.project(self_attend(k, v, bias=omega))[:, self.patch_rows(windows)]


def gaussian(grid: tuple[int, int], sigma: float, prefix: int = 1) -> Tensor:
    """Omega, (P + N, P + N): exp(-distance^2 / (2 sigma^2)) of patches, 0 in the P tokens' before
    them.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side).float() for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    squared = (places[:, None] - places[None]).square().sum(-1)
    omega = torch.zeros(prefix + len(places), prefix + len(places))
    omega[prefix:, prefix:] = torch.exp(-squared / (2 * sigma**2))
    return omega
