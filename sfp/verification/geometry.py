"""Resizes beside bilinear and bicubic interpolation in NumPy, written out axis by axis.

Where they part, the other convention of the corners (``align_corners=True``) is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from sfp.clip.positions import resize_positions
from sfp.images import resize_short_side
from sfp.pipeline.score_map import ScoreMap
from sfp.pipeline.windows import window_grid
from sfp.verification.findings import Finding, failed, passed

_CUBIC = -0.75  # torch's and OpenCV's
_NEAR = 1e-4


def resizes() -> Finding:
    """The picture's, the positions', the window's and the label map's resize."""
    differences, wrong = {}, []
    for name, check in (
        ("the picture's resize", picture),
        ("the positional embedding's resize", positions),
        ("the enlargement of scores to windows and label map", scores),
    ):
        here, expected, guesses, near = check()
        differences[name] = float(np.abs(here - expected).max())
        if differences[name] > near:
            wrong.append(f"{name} is off by {differences[name]:.3g}: {_cause(here, guesses, near)}")
    if wrong:
        return failed("; ".join(wrong), differences=differences)
    return passed("bilinear and bicubic, corners not aligned, as in NumPy", differences=differences)


def _cause(here: np.ndarray, guesses: Mapping[str, np.ndarray], near: float) -> str:
    named = [word for word, value in guesses.items() if np.abs(here - value).max() <= near]
    return named[0] if named else "other corners don't explain it"


def picture() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], float]:
    """A small picture, enlarged; in grey values, which are whole numbers."""
    rng = np.random.default_rng(0)
    small = np.repeat(rng.integers(0, 256, (8, 11, 1)), 3, 2).astype(np.uint8)
    here = resize_short_side(small, 40)[0].numpy()

    def whole(corners: bool) -> np.ndarray:
        return np.round(both(small[..., 0], here.shape, linear, corners))

    return here, whole(False), _corners(whole), 1.0


def positions() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], float]:
    """One channel of positions on 7x7, for 10x12 as DINO resizes them."""
    rng, grid, g = np.random.default_rng(1), (10, 12), 7
    values = rng.standard_normal((1 + g * g, 1)).astype(np.float32)
    found = resize_positions(torch.from_numpy(values), (g, g), grid)
    here = found[1:, 0].view(grid).numpy()

    def resized(corners: bool) -> np.ndarray:
        native = values[1:, 0].reshape(g, g).astype(np.float64)
        factors = [(new + 0.1) / g for new in grid]
        return both(native, grid, cubic, corners, factors)

    guesses = _corners(resized)
    exact = both(values[1:, 0].reshape(g, g).astype(np.float64), grid, cubic, False)
    guesses["the size is given instead of the scale"] = exact
    return here, resized(False), guesses, _NEAR


def scores() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], float]:
    """Maps of two windows side by side, stitched, then resized to a label map."""
    rng, size, label = np.random.default_rng(2), (32, 48), (50, 70)
    windows = window_grid(*size, 32, 16)
    maps = rng.standard_normal((len(windows), 4, 4, 1)).astype(np.float32)
    stitched = ScoreMap.of_windows(torch.from_numpy(maps), windows, size).resized(label)
    here = stitched.canvas()[0].numpy()

    def whole(in_windows: bool, in_label: bool) -> np.ndarray:
        total, count = np.zeros(size), np.zeros(size)
        for window, values in zip(windows, maps, strict=True):
            place = (slice(window.top, window.bottom), slice(window.left, window.right))
            total[place] += both(values[..., 0], window.size, linear, in_windows)
            count[place] += 1
        return both(total / count, label, linear, in_label)

    guesses = {
        "the corners are aligned (align_corners=True) everywhere": whole(True, True),
        "the corners are aligned (align_corners=True) in windows": whole(True, False),
        "the corners are aligned (align_corners=True) in the label map": whole(False, True),
    }
    return here, whole(False, False), guesses, _NEAR


def _corners(resize: Callable[[bool], np.ndarray]) -> dict[str, np.ndarray]:
    return {"the corners are aligned (align_corners=True)": resize(True)}


def both(
    values: np.ndarray,
    size: tuple[int, int],
    kernel: Callable[[np.ndarray, int], np.ndarray],
    corners: bool,
    factors: list[float] | None = None,
) -> np.ndarray:
    """A map (h, w) resized to (H, W) along both axes.

    Args:
        kernel: the matrix of samples at given places of so many cells.
        corners: whether the first and last cells lie on the first and last samples.
        factors: that place the samples, instead of the sizes' ratios.
    """
    found = np.asarray(values, np.float64)
    for axis, new in enumerate(size):
        old = found.shape[axis]
        factor = factors[axis] if factors else new / old
        at = np.arange(new)
        at = at * (old - 1) / max(new - 1, 1) if corners else (at + 0.5) / factor - 0.5
        found = np.moveaxis(np.tensordot(kernel(at, old), found, (1, axis)), 0, axis)
    return found


def linear(at: np.ndarray, cells: int) -> np.ndarray:
    """Weights (n, cells) of a linear interpolation at places in cells, clamped at the ends."""
    at = at.clip(0, cells - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)[None]))


def cubic(at: np.ndarray, cells: int) -> np.ndarray:
    """Weights (n, cells) of a cubic convolution, the ends repeated."""
    weights = np.zeros((len(at), cells))
    first = np.floor(at).astype(int)
    for offset in (-1, 0, 1, 2):
        x = np.abs(at - (first + offset))
        near = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
        far = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
        value = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        weights[np.arange(len(at)), (first + offset).clip(0, cells - 1)] += value
    return weights
