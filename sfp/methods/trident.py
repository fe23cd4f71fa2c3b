"""Trident: windows spliced by DINO, then mixed over the whole image by SAM (ICCV 2025).

Official repository: YuHengsss/Trident, at commit a93b346. Its refinement of labels by SAM's masks
is the refiner ``SAM``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.backbones import load_backbone, load_sam
from sfp.backbones.sam import SamAttention, SamImage, SamStandInImage
from sfp.backbones.sam_files import SAM_BASE
from sfp.backbones.timm_vit import Positions
from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import linear
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import masked_similarity_attention
from sfp.stages import Picture, Text, View

_BYTES = 256 << 20  # of the windows' similarities at a time


@dataclass
class Seen:
    """What SAM saw of one picture, and what was made of it.

    Attributes:
        parts: the parts of the picture from left to right, none where there is no SAM.
        sam: the picture as SAM saw it, for a refiner; None where it saw parts, or is a stand-in.
        features: unit features (m_h, m_w, D) of the whole picture, made by the first ``score``.
    """

    parts: list[SamImage | SamStandInImage] = field(default_factory=list)
    sam: SamImage | None = None
    features: Tensor | None = None


@METHODS.register("Trident")
class Trident(Method):
    """Y = R c: ProxyCLIP's tokens c of all windows on one canvas, mixed by SAM's last attention R.

    Windows: S = E E^T, E DINO's unit tokens; A = softmax of B = gamma (S - beta mean(S)) > 0, the
    mean over all windows of the image; y = W_o (A V) + b_o, neither residual nor FFN. The canvas is
    their mean, resized to SAM's grid.

    SAM: R_ij = mean over heads of P_ij [cos(u_i, u_j) > theta_i], rows divided by their sums; P and
    u are the attention and the values of SAM's last block, theta_i = kappa times the mean of row i
    over heads and places. The image is resized so that its sides are multiples of the patch, and
    not below the window.

    ``method(windows)`` gives the features of windows by themselves, without SAM.

    Args:
        proxy: DINO; a timm ViT, "colour" or a callable, see ``load_backbone``.
        proxy_weights: a local file instead of timm's download.
        proxy_positions: how its positions are resized, "scale" as in DINO's code; for ViTs with
            registers "timm".
        proxy_beta: beta.
        proxy_gamma: gamma.
        sam: facebook/sam-vit-base, a folder or file of a SAM, "colour", or a callable from a
            picture (H, W, 3) uint8 to ``SamAttention``, see ``load_sam``; None for no SAM, where
            the canvas itself is compared with the text.
        sam_weights: a local file or folder instead of the download.
        sam_halves: SAM sees the left and the right half of the picture apart, as for Cityscapes.
        kappa: of the threshold; ``cos_fac`` in the code.
        refine_neg_cos: whether a negative threshold stays; otherwise it becomes 0.6.
    """

    proxy: str | Callable[[Tensor], Tensor] = "vit_base_patch16_224.dino"
    proxy_weights: str | None = None
    proxy_positions: Positions = "scale"
    proxy_beta: float = 1.2
    proxy_gamma: float = 3.0
    sam: str | Callable[[np.ndarray], SamAttention] | None = SAM_BASE
    sam_weights: str | None = None
    sam_halves: bool = False
    kappa: float = 1.2
    refine_neg_cos: bool = True

    joins_windows = True
    changes = Changes(
        "Shi et al., ICCV 2025",
        "similarity of DINO, over the image SAM's attention",
        "last block's, resized",
        residual=False,
        ffn=False,
    )

    def prepare(self) -> None:
        self.backbones["proxy"] = load_backbone(
            self.proxy, self.clip, "proxy", self.proxy_weights, positions=self.proxy_positions
        )
        if self.sam is not None:
            self.backbones["sam"] = load_sam(
                self.sam,
                "sam",
                self.sam_weights,
                device=self.clip.device,
                dtype=self.trunk.dtype,
            )

    # ------------------------------------------------------------------ windows by themselves
    def tokens(self, windows: Tensor) -> Tensor:
        return self._alone(windows).flatten(2).mT

    def features(self, windows: Tensor) -> Tensor:
        return self.trunk.readout(self._alone(windows).permute(0, 2, 3, 1))

    def _alone(self, windows: Tensor) -> Tensor:
        """y (B, C, h', w'), the mean of S of each window its own."""
        made = self.encode(windows)
        means = _means(made["proxy"])
        return self._mixed(made["proxy"], made["values"], means)

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit maps E "proxy" (B, C', h', w') float32 and "values" V (B, C, h, w)."""
        block, patches = self.last_block, self.patch_rows(windows)
        values = block.values(block.normed(self.stream(windows)))[:, :, patches]
        values = values.transpose(2, 3).flatten(1, 2).unflatten(2, self.grid(windows))
        maps = self.backbones["proxy"](windows)
        return dict(proxy=F.normalize(maps, dim=1), values=values)

    def _mixed(self, maps: Tensor, values: Tensor, means: Tensor) -> Tensor:
        """y (n, C, h', w') of windows, ``means`` (n, 1, 1) those of S."""
        block, (grid_height, grid_width) = self.last_block, maps.shape[-2:]
        at_once = max(1, _BYTES // (16 * (grid_height * grid_width) ** 2))
        found = []
        for some, own, mean in zip(
            maps.split(at_once), values.split(at_once), means.split(at_once), strict=True
        ):
            rows = some.flatten(2).mT  # E
            weights = masked_similarity_attention(
                rows @ rows.mT, self.proxy_gamma, self.proxy_beta, mean
            )
            resized = _resized(own.float(), (grid_height, grid_width)).flatten(2)
            heads = resized.unflatten(1, (self.trunk.heads, -1)).mT  # V
            found.append(block.project(weights[:, None] @ heads).mT)
        return torch.cat(found).unflatten(2, (grid_height, grid_width))

    # ------------------------------------------------------------------ the whole image
    def fit(self, size: tuple[int, int], window: int, stride: int) -> tuple[int, int]:
        """Sides up to multiples of the patch, and not below the window.

        Raises:
            SFPError: window or stride is no multiple of the patch.
        """
        patch = self.trunk.patch
        if window and (window % patch or stride % patch):
            raise SFPError(
                f"window={window} and stride={stride} are for {self.name} no multiples of the"
                f" patch {patch} both; give such ones, or window=0 for whole images."
            )
        short, long = sorted(size)
        if short % patch or long % patch:
            longer = -(-long // patch) * patch
            short = -(-(short * longer // long) // patch) * patch
            long = longer
        short, long = max(short, window), max(long, window)
        return (short, long) if size[0] <= size[1] else (long, short)

    def look(self, picture: Picture) -> Seen:
        """What SAM sees of the original picture, or where only its normalised tensor is known of
        that.
        """
        seen = Seen()
        if self.sam is None:
            return seen
        pixels = self._stretched(picture)
        middle = pixels.shape[1] // 2
        parts = [pixels[:, :middle], pixels[:, middle:]] if self.sam_halves else [pixels]
        seen.parts = [self.backbones["sam"].see(part) for part in parts]
        if not self.sam_halves and isinstance(seen.parts[0], SamImage):
            seen.sam = seen.parts[0]
        return seen

    def _stretched(self, picture: Picture) -> np.ndarray:
        """The picture (H, W, 3) uint8, each side bilinear to the next multiple of the patch."""
        if picture.pixels is None and not picture.path:
            planes = self.clip.denormalise(picture.image) * 255
        else:
            planes = torch.from_numpy(picture.original().copy()).permute(2, 0, 1).float()
        size = tuple(side + -side % self.trunk.patch for side in planes.shape[1:])
        planes = _resized(planes[None], size)[0].round().clamp(0, 255).to(torch.uint8)
        return planes.permute(1, 2, 0).contiguous().cpu().numpy()

    def canvas(self, view: View) -> Tensor:
        """c: the windows' y on one canvas of the image, their mean where they overlap, (C, ., .)
        float32.
        """
        maps, patch = view["proxy"], self.trunk.patch
        mean = _means(maps).mean().expand(len(maps), 1, 1)  # of S over all windows
        tokens = self._mixed(maps, view["values"], mean).float()
        grid, (height, width) = view["values"].shape[-2:], tokens.shape[-2:]
        # rho, rounded half to even; where it is no whole number y is resized to rho g
        rho = width // grid[1] if width % grid[1] == 0 else max(1, round(height / grid[0]))
        if (height, width) != (size := (rho * grid[0], rho * grid[1])):
            tokens = _resized(tokens, size)
        rows, columns = (rho * (side // patch) for side in view.image.shape[1:])
        total, count = (
            tokens.new_zeros(tokens.shape[1], rows, columns),
            tokens.new_zeros(rows, columns),
        )
        for own, (top, left, _, _) in zip(tokens, view.boxes.tolist(), strict=True):
            place = (
                slice(rho * top // patch, rho * top // patch + size[0]),
                slice(rho * left // patch, rho * left // patch + size[1]),
            )
            total[:, *place] += own
            count[place] += 1
        return total / count

    def mixed(self, view: View) -> Tensor:
        """Y = R c on SAM's grid, (m_h, m_w, C) float32; parts side by side."""
        canvas = self.canvas(view)
        parts = view.looked.parts
        if not parts:
            return canvas.permute(1, 2, 0)
        middle = canvas.shape[2] // 2
        pieces = [canvas] if len(parts) == 1 else [canvas[..., :middle], canvas[..., middle:]]
        found = []
        for piece, part in zip(pieces, parts, strict=True):
            attention = part.attention()
            weights = affinity(attention, self.kappa, self.refine_neg_cos).to(canvas.device)  # R
            cells = _resized(piece[None], attention.grid)[0].flatten(1).T  # c_i
            found.append((weights @ cells).unflatten(0, attention.grid))
        return torch.cat(found, 1)

    def score(self, view: View, text: Text) -> Tensor:
        """Cosines on SAM's grid, (m_h, m_w, Q)."""
        seen = view.looked
        if seen.features is None:
            seen.features = l2_normalise(self.trunk.readout(self.mixed(view)))
        return linear(seen.features, text.vectors)


def affinity(seen: SamAttention, kappa: float, refine_neg_cos: bool) -> Tensor:
    """R (M, M) float32. Head after head: at most three such maps are held at once."""
    unit = l2_normalise(seen.values)
    means = (unit @ unit.mean(1)[..., None])[..., 0].mean(0)  # of C over heads and columns, (M,)
    theta = kappa * means
    if not refine_neg_cos:
        theta = theta.masked_fill(theta < 0, 0.6)
    theta = theta.clamp(max=0.9)[:, None]
    total = None
    for own, weights in zip(unit, seen.maps, strict=True):
        below = own @ own.T <= theta  # C_h
        kept = weights.masked_fill(below.fill_diagonal_(False), 0.0)
        total = kept if total is None else total.add_(kept)
    total.diagonal().add_(1e-30)  # a row whose weights all lie in the padding keeps itself
    return total.div_(total.sum(1, keepdim=True))


def _means(maps: Tensor) -> Tensor:
    """mean(S) of each window's unit map E (n, C, h', w'), (n, 1, 1): |mean of its rows|^2."""
    return maps.mean((2, 3)).square().sum(1)[:, None, None]


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, C, h, w) bilinear to a size."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
