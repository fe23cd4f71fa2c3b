"""Which channels of a CLIP are over-active in single tokens, for RF-CLIP's ``channels``."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sfp.clip.clip import FrozenCLIP
from sfp.clip.trunk import Hook, LayerState


@torch.inference_mode()
def over_active(clip: FrozenCLIP, batches: Iterable[Tensor], sigma: float = 5.0) -> Tensor:
    """How often each channel exceeds RF-CLIP's line after the blocks of the second half, (C,).

    The share of patches x with (x_j - min x) / sum(x - min x) above sigma / C, after blocks L / 2 +
    1 to L of the unchanged trunk, float64.

    Args:
        batches: normalised windows (B, 3, H, W).
        sigma: the line, in units of 1 / C.
    """
    trunk, patches = clip.trunk, 0
    above = torch.zeros(trunk.width, dtype=torch.float64)

    def count(state: LayerState) -> None:
        nonlocal patches, above
        rows = state.patches.float()
        rows = rows - rows.amin(-1, keepdim=True)
        line = sigma / trunk.width * rows.sum(-1, keepdim=True).clamp(min=1e-8)
        above += (rows > line).sum((0, 1)).cpu()
        patches += rows.shape[0] * rows.shape[1]

    hook = Hook(count, range(trunk.layers // 2 + 1, trunk.layers + 1))
    for windows in batches:
        trunk.run(windows.to(clip.device), [hook])
    return above / max(patches, 1)
