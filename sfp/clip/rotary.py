"""Rotary positions: queries and keys of patches, turned by their places in the grid."""

from __future__ import annotations

import copy
import threading

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from sfp.errors import SFPError

_MOST_GRIDS = 32


class Rotary:
    """timm's rotary positions of one image tower, for any grid.

    On other grids than the native one they are made as timm makes them for another image size; most
    towers stretch them to a reference grid.

    Attributes:
        prefix: how many tokens before the patches are not turned.
        grid: of the windows that went into the trunk last, in each thread by itself.
    """

    def __init__(self, module: nn.Module, native: tuple[int, int], prefix: int, half: bool = False):
        self.module, self.native, self.prefix, self.half = module, tuple(native), prefix, half
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._last = threading.local()

    @property
    def grid(self) -> tuple[int, int] | None:
        return getattr(self._last, "grid", None)

    @grid.setter
    def grid(self, grid: tuple[int, int]) -> None:
        self._last.grid = grid

    def turn(self, u: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Queries or keys (B, heads, T, head width), the patches' turned; in their dtype.

        Args:
            u: of all tokens, or of the N patches alone.
            grid: (h, w), N = h w; ``grid`` of this thread, if None; (0, 0) for tokens that have no
                place, which stay as they are.

        Raises:
            SFPError: no window went into the trunk yet, or T is too small for the grid.
        """
        grid = self.grid if grid is None else tuple(grid)
        tokens = u.shape[2]
        if grid == (0, 0):
            return u
        count = grid[0] * grid[1] if grid else 0
        first = 0 if tokens == count else self.prefix
        if not count or tokens < first + count:
            raise SFPError(
                f"The rotary positions of {tokens} tokens are not those of a grid of {grid}; give"
                " qkv the grid of these windows."
            )
        table = self.table(grid, u.device)
        out = u.clone()
        patches = u[:, :, first : first + count]
        out[:, :, first : first + count] = apply_rot_embed_cat(patches, table, half=self.half)
        return out

    def table(self, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
        """Sines and cosines of a grid, (h * w, 2 * head width) float32."""
        kept = self._tables.get(grid)
        if kept is None or (device is not None and kept.device != device):
            if len(self._tables) > _MOST_GRIDS:  # whole-image mode meets many grids
                self._tables.clear()
            module = self.module
            if grid != self.native:
                module = copy.deepcopy(module)
                module.update_feat_shape(list(grid))
            kept = module.get_embed().detach().float().to(device)
            if not torch.compiler.is_compiling():  # a CUDA graph writes over its tensors
                self._tables[grid] = kept
        return kept
