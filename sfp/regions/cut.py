"""LaVG's masks: normalised cuts of a picture's patches (Kang and Cho, ECCV 2024).

"In Defense of Lazy Visual Grounding"; dahyun-kang/lavg, whose cut is that of CutLER (Wang et al.,
CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from sfp.backbones import load_backbone
from sfp.clip.clip import l2_normalise
from sfp.options import Range
from sfp.regions._program import PROGRAMS, MaskProgram
from sfp.regions.regions import Regions

_EPSILON = 1e-5  # what unlike patches have in common
_FEWEST = 5  # free patches; with no more of them the cutting ends
_STEPS = 400  # Lanczos steps at most
_ROUNDING = 1e-13  # what is left of the eigenproblem when they end
_TIE = 1e-9  # of the largest entry: what differs by less is equal
_LEAST_IOU = 0.5  # of a mask with its refined self


@PROGRAMS.register("cut")
class NormalisedCut(MaskProgram):
    """The picture squeezed to a square, its patches cut in two again and again.

    Each cut takes one connected piece of the free patches out, see ``normalised_cuts``. A mask is
    then enlarged, its holes are filled, it is dropped (an empty mask stays in the list) if that
    leaves an IoU below 0.5, and resized to the picture. Before the filling the authors have a dense
    CRF, which is left out here (pydensecrf doesn't build): masks keep the patches' corners.

    Args:
        backbone: whose keys of the last block compare patches: a timm ViT, "colour", or a callable
            from windows to a map (B, C, h', w'); see ``load_backbone``.
        backbone_weights: a local file instead of timm's download.
        tau: patches of a larger cosine are alike.
        most: at most so many cuts.
        side: of the square, in pixels.
    """

    backbone: str | Callable[[Tensor], Tensor] = "vit_base_patch8_224.dino"
    backbone_weights: str | None = None
    tau: Annotated[float, Range(-1, 1)] = 0.3
    most: Annotated[int, Range(1)] = 8
    side: Annotated[int, Range(16)] = 640

    keeps: ClassVar[bool] = True

    def __post_init__(self):
        self.network = load_backbone(
            self.backbone, self.clip, "backbone", self.backbone_weights, reads="keys",
            positions="scale",
        )  # fmt: skip
        self.keeps = isinstance(self.backbone, str)  # a callable's name says little

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Regions:
        square = Image.fromarray(pixels).resize((self.side, self.side), Image.Resampling.LANCZOS)
        planes = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        windows = self.clip.normalise(planes)[None].to(self.clip.device)
        masks = normalised_cuts(self.network(windows)[0], self.tau, self.most)
        return Regions.of_stack(
            np.stack([refined(mask, self.side, pixels.shape[:2]) for mask in masks])
        ).with_rest()


def refined(mask: np.ndarray, side: int, size: tuple[int, int]) -> np.ndarray:
    """A mask of patches (h, w) at a picture's size (H, W), by way of a square of ``side``."""
    rows, columns = (np.arange(side) * cells // side for cells in mask.shape)
    square = mask[rows][:, columns]
    filled = scipy.ndimage.binary_fill_holes(square)
    if (square & filled).sum() < _LEAST_IOU * (square | filled).sum():
        return np.zeros(size, bool)
    grey = Image.fromarray(filled.astype(np.uint8) * 255)
    resized = np.array(grey.resize(size[::-1], Image.Resampling.BICUBIC))
    return resized > resized.max() / 2


def normalised_cuts(features: Tensor, tau: float = 0.3, most: int = 8) -> np.ndarray:
    """Masks of patches (M, h, w) bool of features (C, h, w), in the order they are cut off.

    U are the free patches, A_ij = 1 where their cosine is above ``tau``, else 1e-5, D its row
    sums, and v the second eigenvector of (D - A) v = lambda D v. Its sign is chosen so that its
    largest entry is positive. Patches with v_i > mean(v) are one side; it is turned round where it
    holds at least 3 corners of the grid, or not the patch of the largest |v|. The mask is the
    connected piece that holds the patch of the largest v.

    The cosines are float32, the matrix and the solver float64 (8 N^2 bytes for N patches, 330 MB
    for 80x80), without random numbers.
    """
    grid = tuple(features.shape[1:])
    rows = l2_normalise(features.flatten(1).T)
    like = rows @ rows.T > tau  # (N, N) bool
    free = np.ones(len(like), bool)
    masks: list[np.ndarray] = []
    while len(masks) < most and free.sum() > _FEWEST:
        mask = _piece(like, free, grid)
        masks.append(mask)
        free &= ~mask.ravel()
    return np.stack(masks) if masks else np.zeros((0, *grid), bool)


def _piece(like: Tensor, free: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The piece (h, w) that one cut takes out of the free patches (N,)."""
    places = torch.from_numpy(np.flatnonzero(free)).to(like.device)
    v = second_eigenvector(like[places][:, places])
    side, values = np.zeros(len(free), bool), np.full(len(free), np.abs(v).min())
    side[free], values[free] = v - v.mean() > _TIE * np.abs(v).max(), v
    h, w = grid
    corners = side[[0, w - 1, (h - 1) * w, h * w - 1]].sum()
    if corners >= 3 or not side[_first_largest(np.abs(values))]:
        values = -values
        side = ~side & free
    labels, _ = scipy.ndimage.label(side.reshape(grid))
    return labels == labels.flat[_first_largest(values)]


def _first_largest(values: np.ndarray) -> int:
    """The first entry that is the largest but for rounding."""
    largest = values.max()
    return int(np.argmax(values >= largest - _TIE * max(abs(largest), 1e-30)))


def second_eigenvector(like: Tensor) -> np.ndarray:
    """v (n,) of (D - A) v = lambda D v for the second smallest lambda, its largest |v_i| positive.

    Solved as u of D^-1/2 A D^-1/2 with the second largest eigenvalue, v = D^-1/2 u, by Lanczos
    steps from a fixed start to the rounding of float64; by a full decomposition where they don't
    end. Of several such u it is the one nearest to the start, whatever the machine.

    Args:
        like: which patches are alike, (n, n) bool, symmetric; A is 1 there, else 1e-5.
    """
    weights = like.double()
    weights.mul_(1 - _EPSILON).add_(_EPSILON)  # A
    scale = weights.sum(1).rsqrt()
    u = _lanczos(weights, scale)
    if u is None:
        matrix = (scale[:, None] * weights * scale).cpu().numpy()
        u = torch.from_numpy(scipy.linalg.eigh(matrix)[1][:, -2]).to(scale)
    v = (scale * u).cpu().numpy()
    return v * np.sign(v[_first_largest(np.abs(v))])


def _lanczos(weights: Tensor, scale: Tensor) -> Tensor | None:
    """The second eigenvector of the scaled weights; None where the steps don't end."""
    n = len(weights)
    steps = min(n - 1, _STEPS)
    basis = weights.new_zeros(steps + 1, n)  # the first eigenvector, then the Lanczos vectors
    basis[0] = 1 / scale / (1 / scale).norm()
    places = torch.arange(n, dtype=torch.float64)
    found = (2 * places / n - 1 + places.cos()).to(weights)
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(1, steps + 1):
        known = basis[:step]
        for _ in range(2):  # once leaves rounding behind
            found = found - known.T @ (known @ found)
        beside.append(float(found.norm()))
        basis[step] = found / beside[-1]
        found = scale * (weights @ (scale * basis[step]))
        diagonal.append(float(basis[step] @ found))
        if step % 8 == 0 or step == steps or step < 8:
            known, rest = basis[: step + 1], found
            for _ in range(2):
                rest = rest - known.T @ (known @ rest)
            largest = (step - 1, step - 1)
            _, s = scipy.linalg.eigh_tridiagonal(
                diagonal, beside[1:], select="i", select_range=largest
            )
            if float(rest.norm()) * abs(s[-1, 0]) < _ROUNDING:
                return basis[1 : step + 1].T @ torch.from_numpy(s[:, 0].copy()).to(basis)
    return None
