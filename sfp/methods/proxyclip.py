"""ProxyCLIP: the last attention comes from another frozen model's features (Lan et al., ECCV 2024; mc-lan/ProxyCLIP; methods.md 1.13)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from sfp.backbones.proxies import load_proxy
from sfp.clip.kernels import product
from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._parts import cosine_similarity, masked_similarity_attention


@METHODS.register("ProxyCLIP")
class ProxyCLIP(Method):
    """Y = W_o concat(A V) + b_o on the proxy's grid, A = softmax of B = gamma (S - beta mean(S)) above 0, S = E E^T.

    E are the proxy's unit features, V the last block's patch values resized to the proxy's grid; neither residual nor FFN.
    The mean is per image; a token always keeps itself, so that no row is empty.

    """

    # a timm ViT (``vit_base_patch8_224.dino``, ``vit_base_patch14_reg4_dinov2.lvd142m``), "colour", or a callable from
    # normalised windows (B, 3, H, W) float32 to a map (B, C, h', w'); see ``load_proxy``
    proxy: str | Callable[[Tensor], Tensor] = "vit_base_patch8_224.dino"
    proxy_weights: str | None = None  # a local file instead of timm's download
    proxy_beta: float = 1.2
    proxy_gamma: float = 3.0
    pad_to: int = 56  # for scores, windows are padded with zeros all around to its multiples, the padding cut off again

    card = Card(
        "Lan et al., ECCV 2024",
        "similarity of another model",
        "last block's, resized",
        "L",
        False,
        False,
    )

    def prepare(self) -> None:
        if self.pad_to < 1:
            raise SFPError(
                f"pad_to of ProxyCLIP is {self.pad_to}; give a number of pixels of at least 1."
            )
        self.eye = (
            self.proxy
            if callable(self.proxy)
            else load_proxy(self.proxy, self.proxy_weights, self.clip.device, self.trunk.dtype)
        )

    def tokens(self, windows: Tensor) -> Tensor:
        return self._mixed(windows)[0]

    def features(self, windows: Tensor) -> Tensor:
        tokens, grid = self._mixed(windows)
        return self.trunk.readout(tokens).unflatten(1, grid)

    def _mixed(self, windows: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Y (B, h' * w', C) and the proxy's grid (h', w')."""
        seen = self.eye(windows.float())
        if not isinstance(seen, Tensor) or seen.ndim != 4 or len(seen) != len(windows):
            shape = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise SFPError(
                f"The proxy returned {shape} for {len(windows)} windows; it must return a map (B, C, h', w')."
            )
        grid = tuple(seen.shape[-2:])
        similarity = cosine_similarity(seen.flatten(2).transpose(1, 2))  # S
        weights = masked_similarity_attention(similarity, self.proxy_gamma, self.proxy_beta)[
            :, None
        ]  # A, for all heads

        stream, block = self.stream(windows), self.last_block
        values = block.values(block.normed(stream))[:, :, 1:]  # (B, heads, N, d_h)
        maps = (
            values.transpose(2, 3)
            .flatten(1, 2)
            .unflatten(2, self.trunk.grid_of(*windows.shape[-2:]))
        )
        maps = F.interpolate(maps.float(), size=grid, mode="bilinear", align_corners=False)
        values = maps.flatten(2).unflatten(1, (values.shape[1], -1)).transpose(2, 3)
        return block.project(product(weights, values)), grid

    def see(self, windows: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Unit features (B, h', w', D) of the padded windows, and the windows' size."""
        size = windows.shape[-2:]
        down, right = (-side % self.pad_to for side in size)
        padded = F.pad(windows, (right // 2, right - right // 2, down // 2, down - down // 2))
        return super().see(padded), size

    def compare(self, seen: tuple[Tensor, tuple[int, int]], text: Tensor) -> Tensor:
        """Cosines on the proxy's grid (B, h', w', Q); where the windows were padded, at their pixels (B, H, W, Q)."""
        features, (height, width) = seen
        scores = super().compare(features, text)
        down, right = -height % self.pad_to, -width % self.pad_to
        if not down and not right:
            return scores
        scores = F.interpolate(
            scores.permute(0, 3, 1, 2),
            size=(height + down, width + right),
            mode="bilinear",
            align_corners=False,
        )
        return scores[..., down // 2 : down // 2 + height, right // 2 : right // 2 + width].permute(
            0, 2, 3, 1
        )
