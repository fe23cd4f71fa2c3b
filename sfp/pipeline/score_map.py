"""The scores of one image, kept on the patch grids of its windows and enlarged tile by tile.

Enlarging a window's scores to its pixels, averaging overlapping windows and resizing the average to
the label map are linear, and each acts on rows and columns apart: together they are one matrix for
rows and one for columns,

    scores(y, x) = sum over cells i, j of down[y, i] cells[i, j] across[x, j].

So scores are enlarged once, only where they are looked at, and no canvas of queries x pixels exists
unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.errors import by_halves
from sfp.pipeline.windows import Window
from sfp.transfer import to_device

_CACHE_BYTES, _GPU_BYTES = (
    4 << 20,
    256 << 20,
)  # of enlarged scores at a time: a CPU's cache, a share of a GPU's memory


@dataclass(frozen=True)
class ScoreMap:
    """Scores of Q queries.

    Attributes:
        cells: (I, J, Q) float32: I rows of patches, window row after window row; J columns
            likewise.
        down: what each row of patches gives to each row of pixels, (H, I) float32 on the CPU.
        across: the same for columns, (W, J).
    """

    cells: Tensor
    down: Tensor
    across: Tensor

    @classmethod
    def of_windows(cls, maps: Tensor, windows: Sequence[Window], size: tuple[int, int]) -> ScoreMap:
        """From the maps (n, h, w, Q) of an image's windows, as ``window_grid`` orders them; (H, W)
        is the image's size.

        Each map goes bilinear (align_corners=False) to its window's size in pixels; overlapping
        ones are averaged.
        """
        (_, h, w, queries), height, width = maps.shape, *size
        tops, lefts = (
            sorted({getattr(window, side) for window in windows}) for side in ("top", "left")
        )
        crop_height, crop_width = windows[0].size
        cells = (
            maps.float()
            .view(len(tops), len(lefts), h, w, queries)
            .transpose(1, 2)
            .reshape(len(tops) * h, len(lefts) * w, queries)
        )
        return cls(
            cells, _stitching(tops, crop_height, h, height), _stitching(lefts, crop_width, w, width)
        )

    @classmethod
    def of_pixels(cls, scores: Tensor) -> ScoreMap:
        """From scores (Q, H, W) at the pixels of an image."""
        return cls(
            scores.float().permute(1, 2, 0), torch.eye(scores.shape[1]), torch.eye(scores.shape[2])
        )

    @property
    def tile_bytes(self) -> int:
        """Bytes of the scores that are enlarged at a time."""
        return _CACHE_BYTES if self.cells.device.type == "cpu" else _GPU_BYTES

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return len(self.down), len(self.across)

    def resized(self, size: tuple[int, int]) -> ScoreMap:
        """Bilinear (align_corners=False) to another (H, W)."""
        return ScoreMap(self.cells, _resize(self.down, size[0]), _resize(self.across, size[1]))

    def tiles(self, most: int | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and the scores of their pixels (rows, columns, Q) float32, all over the
        image.

        Args:
            most: bytes of a tile; ``tile_bytes`` if None.
        """
        queries, device = self.cells.shape[2], self.cells.device
        pixels = max(1, (most or self.tile_bytes) // (4 * queries))
        height, width = self.size
        columns_at_once = min(width, 256 if device.type == "cpu" else 2048, pixels)
        rows_at_once = min(height, max(1, pixels // columns_at_once))
        all_down, all_across = to_device(self.down, device), to_device(self.across, device)
        for left in range(0, width, columns_at_once):
            columns = slice(left, min(left + columns_at_once, width))
            seen = _used(self.across[columns])
            cells = _taken(self.cells, 1, seen)
            across = _taken(all_across[columns], 1, seen)
            for top in range(0, height, rows_at_once):
                rows = slice(top, min(top + rows_at_once, height))
                seen = _used(self.down[rows])
                spread = across @ _taken(cells, 0, seen)  # (rows of patches, columns, Q)
                down = _taken(all_down[rows], 1, seen)
                yield rows, columns, (down @ spread.flatten(1)).unflatten(1, (-1, queries))

    def canvas(self) -> Tensor:
        """All scores at once, (Q, H, W) float32."""
        return by_halves(self._canvas, self.tile_bytes)

    def _canvas(self, most: int) -> Tensor:
        canvas = self.cells.new_empty(self.cells.shape[2], *self.size)
        for rows, columns, scores in self.tiles(most):
            canvas[:, rows, columns] = scores.permute(2, 0, 1)
        return canvas


def _stitching(starts: Sequence[int], crop: int, cells: int, length: int) -> Tensor:
    """What each cell of windows at ``starts`` gives to each of ``length`` pixels along one axis,
    (length, windows * cells).
    """
    one = _resize(torch.eye(cells), crop)  # (crop, cells)
    placed = torch.zeros(length, len(starts), cells)
    for number, start in enumerate(starts):
        placed[start : start + crop, number] = one
    return (
        placed.flatten(1) / placed.sum((1, 2))[:, None].round()
    )  # a pixel's weights sum to the windows that see it


def _resize(matrix: Tensor, length: int) -> Tensor:
    """Rows of (n, m) resized to (length, m) as bilinear interpolation does along one axis."""
    if len(matrix) == length:
        return matrix
    return F.interpolate(matrix.T[None], size=length, mode="linear", align_corners=False)[0].T


def _used(matrix: Tensor) -> list[slice]:
    """The columns of a matrix that aren't zero, on the CPU, where it is known without waiting."""
    steps = F.pad(matrix.any(0).to(torch.int8), (1, 1)).diff()
    return list(
        map(slice, (steps > 0).nonzero()[:, 0].tolist(), (steps < 0).nonzero()[:, 0].tolist())
    )


def _taken(matrix: Tensor, axis: int, runs: Sequence[slice]) -> Tensor:
    """Those columns (or others of an axis) side by side: without a list of numbers, that would have
    to go to the device.
    """
    parts = [matrix.narrow(axis, run.start, run.stop - run.start) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
