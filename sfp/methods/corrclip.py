"""CorrCLIP: attention inside regions that another model finds alike (Zhang et al., ICCV 2025).

Official repository: zdk258/CorrCLIP, folder CorrCLIPv1, with MetaCLIP's ``metaclip_fullcc`` weights
(B/16, L/14) or LAION's H/14. Its tables have SAM 2's masks (``masks="sam2"``, also with 32 points a
side), and those of models that were trained on masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.backbones import load_backbone
from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import Hook, ImageTrunk, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._connected import components
from sfp.methods._masked import Masked
from sfp.methods._padded import Padded
from sfp.options import Count, Positive
from sfp.regions import nearest
from sfp.stages import Picture, View

_PADDING = 10000  # the number of the region that padding is
_SPATIAL = {12: 5, 24: 12, 32: 28}  # n by L


@dataclass(frozen=True)
class Looked:
    """An image's regions as maps of numbers, int32; the smallest number is "not segmented".

    Attributes:
        original: (H0, W0), as large as the masks are.
        resized: (H, W), as large as the windows slide over it.
    """

    original: Tensor
    resized: Tensor


@METHODS.register("CorrCLIP")
class CorrCLIP(Masked, Padded):
    """F = [LN(Y_main) + a LN(Y_spatial) + b LN(Y_semantic)] P, on the proxy's grid, with LN_post.

    E are the proxy's unit features, S = E E^T. The regions of a window whose mean features are
    alike are joined. Patches of one region see each other; one that is in none and any other do
    where S is above its mean: A = softmax(4 S) over these pairs, one map for all heads.
    Y = W_o (A V) + b_o with V of X^{L-1}, or of the mean of n earlier layers (spatial). For each
    region a copy of the class token runs through all blocks and sees the class token and the
    region's patches (semantic). Neither residual nor FFN. After all, pixels of a region get the
    label that most of them have.

    As in the authors' code the smallest number that a window has counts as "not segmented", even
    where its whole area is segmented; so it is with an image's in the last step.

    Args:
        proxy: a timm ViT, whose queries and keys of the last block are added; "colour", or a
            callable from normalised windows to a map (B, C, h', w'); see ``load_backbone``.
        proxy_weights: a local file instead of timm's download.
        masks: as in ``Masked``; larger masks cover smaller ones.
        join: regions are joined whose cosine is at most so far below the largest one.
        scale: of S before the softmax.
        spatial_layers: n; as published 5 of 12 blocks, 12 of 24, 28 of 32, else L - 4.
        spatial: a, the weight of the spatial part.
        semantic: b, the weight of the semantic part.
        correct: whether regions get one label each.
    """

    proxy: str | Callable[[Tensor], Tensor] = "vit_base_patch8_224.dino"
    proxy_weights: str | None = None
    masks: str | os.PathLike | Mapping[str, Any] | Callable[[Picture], Any] = "sam2"
    join: float = 0.2
    scale: Positive = 4.0
    spatial_layers: Count | None = None
    spatial: float = 1.0
    semantic: float = 0.5
    correct: bool = True

    needs_class_token = True
    changes = Changes(
        "Zhang et al., ICCV 2025",
        "similarity of another model inside regions",
        "last block's and the mean of earlier ones', resized",
        layers="L; reads L-6..L-2",
        residual=False,
        ffn=False,
    )

    def prepare(self) -> None:
        super().prepare()
        self.needs_class_token = self.semantic != 0
        layers = self.trunk.layers
        self.fill(spatial_layers=_SPATIAL.get(layers, max(1, layers - 4)))
        if not 1 <= self.spatial_layers <= layers - 2:
            raise SFPError(
                f"spatial_layers of CorrCLIP is {self.spatial_layers}; this model of {layers}"
                f" blocks has 1 to {layers - 2} such layers."
            )
        self.backbones["proxy"] = load_backbone(
            self.proxy, self.clip, "proxy", self.proxy_weights, reads="queries+keys",
            positions="scale",
        )  # fmt: skip

    # ------------------------------------------------------------------ stages
    def look(self, picture: Picture) -> Looked:
        """The image's regions."""
        numbers = self.backbones["masks"](picture).painted().to(picture.image.device, torch.int32)
        return Looked(numbers, nearest(numbers, tuple(picture.image.shape[1:])))

    def part(self, looked: Looked, box: Sequence[int]) -> Tensor:
        top, left, bottom, right = box
        return looked.resized[top:bottom, left:right]

    def encode(self, windows: Tensor, regions: Tensor) -> dict[str, Tensor]:
        """Unit features of the padded windows; padding is a region of its own."""
        windows, regions = self.padded(windows), self.padded(regions, _PADDING)
        return {"features": l2_normalise(self.features_of(windows, regions))}

    def features(self, windows: Tensor) -> Tensor:
        """F (B, h', w', D) of windows as images of their own, each with its own masks."""
        box = [0, 0, *windows.shape[-2:]]
        looked = [self.look(Picture(window)) for window in windows]
        parts = torch.stack(self.parts(looked, [box] * len(windows)))
        return self.features_of(windows, parts.to(windows.device))

    def tokens(self, windows: Tensor) -> Tensor:
        """There are none: three are read out, and their sum is taken then."""
        raise NotImplementedError("CorrCLIP sums what it has read out; ask for features.")

    def relabel(self, labels: Tensor, view: View) -> Tensor:
        """In each region of the image but the first number's the most frequent label, the least of
        several.
        """
        if not self.correct:
            return labels
        numbers = nearest(view.looked.original.to(labels.device), tuple(labels.shape)).long()
        segmented = numbers > view.looked.original.min()
        classes = int(labels.max()) + 1
        regions = int(numbers.max()) + 1
        pairs = (numbers * classes + labels).flatten()
        counts = torch.bincount(pairs, minlength=regions * classes).view(regions, classes)
        return torch.where(segmented, counts.argmax(1)[numbers], labels)

    # ------------------------------------------------------------------ the parts
    def features_of(self, windows: Tensor, regions: Tensor) -> Tensor:
        """F (B, h', w', D) of windows (B, 3, H, W) with their maps of regions (B, H, W)."""
        maps = self.backbones["proxy"](windows)
        size, grid = tuple(maps.shape[-2:]), self.grid(windows)
        rows = l2_normalise(maps.flatten(2).transpose(1, 2))  # E, (B, N', C')
        at_proxy = F.interpolate(regions[:, None].float(), size=size).flatten(1)
        regions = _ranks(self.joined(_ranks(at_proxy), rows))
        at_clip = F.interpolate(regions.unflatten(1, size)[:, None].float(), size=grid).flatten(1)
        copies = _Copies(self.trunk, at_clip, int(regions.max()) + 1)
        last, sums = self.trunk.layers, []

        def keep(state: LayerState) -> None:
            if last - 1 - self.spatial_layers <= state.layer < last - 1:
                sums.append(state.tokens if not sums else sums.pop() + state.tokens)

        hooks = [Hook(keep, range(1, last))] if self.spatial else []
        hooks += [Hook(copies.step, range(1, last))] if self.semantic else []
        stream = self.stream(windows, *hooks)
        weights = self.attention(rows, regions)
        found = self.mixed(weights, stream, grid, size)
        if self.spatial:
            mean = sums[0] / self.spatial_layers
            found = found + self.spatial * self.mixed(weights, mean, grid, size)
        if self.semantic:
            copies.step(self.trunk.begin(last, stream, grid))
            read = self.trunk.readout(copies.tokens)  # (B, M, D)
            own = F.interpolate(at_clip.unflatten(1, grid)[:, None], size=size).flatten(1).long()
            own = own[..., None].expand(-1, -1, read.shape[-1])
            found = found + self.semantic * read.gather(1, own)
        return found.unflatten(1, size)

    def joined(self, ranks: Tensor, rows: Tensor) -> Tensor:
        """Each patch's region (B, N') after alike ones are joined: the least number of its set.

        Number 0 is "not segmented", and never joined.

        Args:
            ranks: regions by numbers 0, 1, ... in each window, (B, N') int64.
            rows: E, (B, N', C').
        """
        member = F.one_hot(ranks).transpose(1, 2).to(rows.dtype)  # (B, M, N')
        means = l2_normalise(member @ rows)  # a sum has the mean's direction
        cosines = means @ means.transpose(1, 2)
        joinable = member.any(2)
        joinable[:, 0] = False
        both = joinable[:, None] & joinable[:, :, None]
        largest = cosines.masked_fill(~both, -torch.inf).amax((1, 2), keepdim=True)
        itself = torch.eye(cosines.shape[-1], dtype=torch.bool, device=cosines.device)
        near = ((largest - cosines <= self.join) & both) | itself
        return components(near).gather(1, ranks)

    def attention(self, rows: Tensor, ranks: Tensor) -> Tensor:
        """A (B, N', N') float32 by E and regions; a patch always sees itself."""
        similarity = rows @ rows.transpose(1, 2)  # S
        loose = ranks == 0
        allowed = ranks[:, None] == ranks[:, :, None]
        allowed &= ~loose[:, None]
        above = similarity > similarity.mean((1, 2), keepdim=True)
        allowed |= (loose[:, None] | loose[:, :, None]) & above
        allowed |= torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
        return (self.scale * similarity).masked_fill_(~allowed, -torch.inf).softmax(-1)

    def mixed(
        self, weights: Tensor, stream: Tensor, grid: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        """Y = W_o (A V) + b_o of a stream's patches, V resized to the proxy's grid, read out:
        (B, N', D).
        """
        block = self.last_block
        values = block.values(block.normed(stream[:, self.trunk.rows(grid)]))
        heads = values.shape[1]
        maps = values.transpose(2, 3).flatten(1, 2).unflatten(2, grid).float()
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        joined = weights @ maps.flatten(2).transpose(1, 2)  # (B, N', C)
        tokens = joined.unflatten(2, (heads, -1)).transpose(1, 2)
        return self.trunk.readout(block.project(tokens))


class _Copies:
    """Copies of the class token, one for each region of a window, beside the ordinary stream.

    A copy sees the class token and its region's patches, neither itself nor other copies; nothing
    sees it. Windows have different numbers of regions: what has no patch sees the class token.

    Attributes:
        tokens: (B, M, C); Z after the last block.
    """

    def __init__(self, trunk: ImageTrunk, regions: Tensor, count: int):
        """``regions`` (B, N): each patch's, of 0 to ``count`` - 1."""
        self.trunk, self.count = trunk, count
        numbers = torch.arange(count, device=regions.device)[:, None]
        seen = F.pad(regions[:, None] == numbers, (1, 0), value=True)  # (B, M, 1 + N)
        self.seen = seen[:, None]
        self.tokens: Tensor | None = None

    def step(self, state: LayerState) -> None:
        """Run through the block that a state is of."""
        if self.tokens is None:
            self.tokens = state.inputs[:, :1].expand(-1, self.count, -1)
        block, rows = self.trunk.blocks[state.layer - 1], state.rows
        (q,) = block.qkv(block.normed(self.tokens), "q", (0, 0))
        k, v = (torch.cat([own[:, :, :1], own[:, :, rows]], 2) for own in (state.k, state.v))
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen)
        self.tokens = self.tokens + block.project(seen)
        self.tokens = self.tokens + block.mlp(self.tokens)


def _ranks(values: Tensor) -> Tensor:
    """The place of each value among those of its row, 0 for the least: (B, N) to (B, N) int64."""
    ordered, order = values.sort(1)
    steps = F.pad((ordered[:, 1:] != ordered[:, :-1]).long(), (1, 0))
    return torch.empty_like(steps).scatter_(1, order, steps.cumsum(1))
