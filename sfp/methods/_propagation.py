"""Label propagation over a graph: y of (I - alpha D^-1/2 W D^-1/2) y = y0 by a few steps of
conjugate gradients. Graphs of patches and of pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_BYTES = 64 << 20  # of similarities at a time
_DENSE_BYTES = 256 << 20  # of a whole matrix; a larger one is kept as its entries
_STATE_BYTES = 256 << 20  # of the solver's four vectors, all queries of a group
_CPU_NUMBERS = 1 << 16  # that one product of a shift touches, so that they stay in a cache
# of CIE 1931, sRGB's primaries and white D65
_XYZ_OF_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)


def exact(device: torch.device) -> torch.dtype:
    """The solver's numbers: float64; float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


class PatchGraph:
    """W = w + w^T without its diagonal, normalised, of n patches.

    w_ij = max(f_i . f_j, 0)^gamma exp(-sigma |x_i - x_j|^rho) for the k patches j whose f_j are
    most like f_i, i itself among them; 0 for others. Mutual neighbours count twice.

    Args:
        features: unit f, (n, C) float32.
        places: x in pixels, (n, 2).
        neighbours: k; all patches where there are fewer.
    """

    def __init__(
        self,
        features: Tensor,
        places: Tensor,
        neighbours: int,
        gamma: float,
        sigma: float,
        rho: float,
    ):
        self.count, device = len(features), features.device
        k, numbers = min(neighbours, self.count), torch.arange(self.count, device=device)
        found = []
        for rows in numbers.split(max(1, _ROWS_BYTES // (4 * self.count))):
            likeness, j = (features[rows] @ features.T).topk(k, sorted=False)
            distance = (places[rows, None] - places[j]).norm(dim=-1)
            w = likeness.clamp(min=0) ** gamma * torch.exp(-sigma * distance**rho)
            found.append((w.to(exact(device)), j))
        w, j = (torch.cat(parts) for parts in zip(*found, strict=True))  # (n, k)
        dense = self.count**2 * w.element_size() <= _DENSE_BYTES
        self.matrix = self._dense(w, j) if dense else None
        if not dense:
            self._sparse(w, j)

    def _dense(self, w: Tensor, j: Tensor) -> Tensor:
        """D^-1/2 W D^-1/2, (n, n)."""
        own = w.new_zeros(self.count, self.count).scatter_(1, j, w)
        joined = (own + own.T).fill_diagonal_(0)
        scale = _scale(joined.sum(1))
        return joined.mul_(scale).mul_(scale[:, None])

    def _sparse(self, w: Tensor, j: Tensor) -> None:
        """Its entries, row after row: ``weights`` in ``columns``, and where rows start."""
        i = torch.arange(self.count, device=j.device)[:, None].expand_as(j)
        kept = (w != 0) & (i != j)
        i, j, w = i[kept], j[kept], w[kept]
        rows, order = torch.cat([i, j]).sort(stable=True)
        self.columns, weights = torch.cat([j, i])[order], torch.cat([w, w])[order]
        scale = _scale(weights.new_zeros(self.count).index_add_(0, rows, weights))
        self.weights = weights * scale[rows] * scale[self.columns]
        counts = torch.bincount(rows, minlength=self.count)
        self.starts = counts.cumsum(0) - counts

    def product(self, y: Tensor) -> Tensor:
        """D^-1/2 W D^-1/2 y of rows y (Q, n)."""
        if self.matrix is not None:
            return y @ self.matrix
        if not len(self.columns):
            return torch.zeros_like(y)
        mixed = F.embedding_bag(
            self.columns, y.T.contiguous(), self.starts, mode="sum", per_sample_weights=self.weights
        )
        return mixed.T


class PixelGraph:
    """W of the pixels of an image, normalised: w = exp(-|d|_2 / tau), d the difference of scaled
    Lab colours, among all pixels at most so many rows and columns apart.

    A pixel's neighbours are the shifts of the image; W is symmetric, so the weights of half of them
    are kept, each a plane. Planes are rows of W + radius pixels, the last ones none of the image's,
    so that a shift is one step along memory.

    Args:
        rgb: in [0, 1], (3, H, W) float32.
        tau: tau.
        radius: how many rows and columns.
    """

    def __init__(self, rgb: Tensor, tau: float, radius: int):
        self.size, self.radius = tuple(rgb.shape[1:]), radius
        (height, width), dtype = self.size, exact(rgb.device)
        self.pitch = width + radius
        self.shifts = [
            (down, right)
            for down in range(radius + 1)
            for right in range(-radius, radius + 1)
            if (down > 0 or right > 0) and down < height and abs(right) < width
        ]
        self.steps = [down * self.pitch + right for down, right in self.shifts]
        lab = lab_of(rgb).to(dtype) / lab_scale(rgb.device).to(dtype)
        self.planes = lab.new_zeros(len(self.shifts), height * self.pitch)
        degree = lab.new_zeros(self.size)
        for plane, (down, right) in zip(self.planes, self.shifts, strict=True):
            here, there = _overlap(self.size, down, right)
            w = torch.zeros_like(lab[0][here])
            for channel in lab:
                difference = channel[here] - channel[there]
                w.addcmul_(difference, difference)
            w = w.sqrt_().div_(-tau).exp_()
            plane.view(height, self.pitch)[here] = w
            degree[here] += w
            degree[there] += w
        scale = self.flat(_scale(degree)[None])[0]
        for plane, step in zip(self.planes, self.steps, strict=True):
            plane.mul_(scale[: len(plane)]).mul_(scale[step : step + len(plane)])

    def flat(self, maps: Tensor) -> Tensor:
        """Maps (Q, H, W) as rows of the solver, (Q, M), with zeros around."""
        padded = F.pad(maps, (0, self.radius, 0, self.radius)).flatten(1)
        return F.pad(padded.to(exact(maps.device)), (0, self.radius))

    def maps(self, rows: Tensor) -> Tensor:
        """(Q, M) as maps (Q, H, W)."""
        height, width = self.size
        pixels = rows[:, : height * self.pitch].unflatten(1, (height, self.pitch))
        return pixels[..., :width]

    def product(self, y: Tensor) -> Tensor:
        """D^-1/2 W D^-1/2 y of rows y (Q, M): every shift and its opposite, in pieces."""
        mixed, length = torch.zeros_like(y), self.planes.shape[1]
        numbers = _CPU_NUMBERS if y.device.type == "cpu" else length * len(y)
        at_once = max(1, numbers // len(y))
        for start in range(0, length, at_once):
            some = slice(start, min(start + at_once, length))
            own, here = y[:, some], mixed[:, some]
            for plane, step in zip(self.planes[:, some], self.steps, strict=True):
                there = slice(some.start + step, some.stop + step)
                here.addcmul_(plane, y[:, there])
                mixed[:, there].addcmul_(plane, own)
        return mixed

    def queries_at_once(self) -> int:
        """How many queries are solved together, so that memory stays bounded."""
        height, _ = self.size
        bytes_each = 4 * self.planes.element_size() * (height + self.radius) * self.pitch
        return max(1, _STATE_BYTES // bytes_each)


def _scale(degree: Tensor) -> Tensor:
    """s^-1/2, 1 where s is 0."""
    return torch.where(degree == 0, 1, degree).rsqrt()


def _overlap(
    size: tuple[int, int], down: int, right: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The pixels that have a neighbour so many rows down (>= 0) and columns right, and these."""
    height, width = size
    left = max(0, -right)
    count = width - abs(right)
    here = slice(0, height - down), slice(left, left + count)
    return here, (slice(down, height), slice(left + right, left + right + count))


def solve(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    alpha: float,
    iterations: int,
    tolerance: float,
) -> Tensor:
    """y of (I - alpha What) y = y0 by conjugate gradients from zero, each row on its own.

    Args:
        product: What y of rows y (Q, M).
        start: y0, (Q, M), of the type that is calculated in.
        alpha: alpha.
        iterations: at most so many steps; a truncated solve is part of LPOSS.
        tolerance: a row ends at a residual of so many times its |y0|.
    """
    y, residual, direction = torch.zeros_like(start), start.clone(), start.clone()
    square = _dot(residual, residual)
    least = tolerance**2 * square
    for _ in range(iterations):
        goes_on = ~(square <= least)  # NaN goes on, and shows
        if not bool(goes_on.any()):
            break
        moved = product(direction).mul_(-alpha).add_(direction)
        step = torch.where(goes_on, square / _dot(direction, moved), 0)[:, None]
        y.addcmul_(step, direction)
        residual.addcmul_(-step, moved)
        before, square = square, _dot(residual, residual)
        direction.mul_(torch.where(goes_on, square / before, 0)[:, None]).add_(residual)
    return y


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of each row, (Q,)."""
    return torch.einsum("qm,qm->q", one, other)


def lab_of(rgb: Tensor) -> Tensor:
    """CIE Lab (L in 0..100) of sRGB in [0, 1], white D65, (3, H, W)."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = torch.einsum("xc,chw->xhw", linear.new_tensor(_XYZ_OF_RGB), linear)
    t = xyz / linear.new_tensor(_WHITE)[:, None, None]
    x, y, z = torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 4 / 29)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def lab_scale(device: torch.device) -> Tensor:
    """What Lab is divided by, (3, 1, 1)."""
    return torch.tensor([100.0, 128.0, 128.0], device=device)[:, None, None]
