"""ProxyCLIP: the last attention comes from another frozen model (Lan et al., ECCV 2024).

Official repository: mc-lan/ProxyCLIP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sfp.backbones import Backbone, Positions, load_backbone
from sfp.backbones.timm_vit import DINOV2_L14, TimmViT
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._padded import Padded
from sfp.methods._parts import cosine_similarity, masked_similarity_attention
from sfp.options import Count


@METHODS.register("ProxyCLIP")
class ProxyCLIP(Padded):
    """Y = W_o concat(A V) + b_o on the proxy's grid, A = softmax of B = gamma (S - beta mean(S)) >
    0.

    S = E E^T, E the proxy's unit features, V the last block's patch values resized to the proxy's
    grid; neither residual nor FFN. The mean is per image; a token always keeps itself, so that no
    row is empty.

    Args:
        proxy: a timm ViT (``vit_base_patch8_224.dino``, ``vit_base_patch14_reg4_dinov2.lvd142m``),
            "colour", or a callable from normalised windows (B, 3, H, W) float32 to a map
            (B, C, h', w'); see ``load_backbone``.
        proxy_weights: a local file instead of timm's download.
        proxy_positions: how a timm ViT's positions are resized, see ``TimmViT``.
        proxy_registers: test-time registers of a timm ViT: how many, for DINOv2's ViT-L/14, or a
            dict of ``Registers``' options with the model's "neurons".
        proxy_beta: beta.
        proxy_gamma: gamma.
    """

    proxy: str | Callable[[Tensor], Tensor] = "vit_base_patch8_224.dino"
    proxy_weights: str | None = None
    proxy_positions: Positions = "auto"
    proxy_registers: Count | Mapping[str, Any] = 0
    proxy_beta: float = 1.2
    proxy_gamma: float = 3.0

    changes = Changes(
        "Lan et al., ECCV 2024",
        "similarity of another model",
        "last block's, resized",
        residual=False,
        ffn=False,
    )

    def prepare(self) -> None:
        proxy = load_backbone(
            self.proxy, self.clip, "proxy", self.proxy_weights, positions=self.proxy_positions
        )
        if self.proxy_registers:
            self._append_registers(proxy)
        self.backbones["proxy"] = proxy

    def _append_registers(self, proxy: Backbone) -> None:
        given = self.proxy_registers
        if not isinstance(given, Mapping) and str(self.proxy).startswith(
            "vit_large_patch14_dinov2"
        ):
            given = dict(count=given, neurons=DINOV2_L14)
        if not isinstance(given, Mapping) or "neurons" not in given:
            raise SFPError(
                f"proxy_registers of ProxyCLIP is {given!r}, but the register neurons of"
                f" {self.proxy} are not known; give dict(count=1, neurons={{BLOCK: [UNIT, ...]}})."
            )
        if not isinstance(proxy, TimmViT):
            raise SFPError(
                f"proxy_registers of ProxyCLIP is given, but {proxy.name} is no timm ViT; leave it"
                " out."
            )
        proxy.append_registers(given)

    def tokens(self, windows: Tensor) -> Tensor:
        return self._mixed(windows)[0]

    def features(self, windows: Tensor) -> Tensor:
        tokens, grid = self._mixed(windows)
        return self.trunk.readout(tokens).unflatten(1, grid)

    def _mixed(self, windows: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Y (B, h' * w', C) and the proxy's grid (h', w')."""
        weights, grid = self.attention(windows)
        values = self.values(self.stream(windows), self.grid(windows), grid)
        return self.last_block.project(weights[:, None] @ values), grid

    def attention(self, windows: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A (B, N', N') on the proxy's grid (h', w'), and that grid."""
        maps = self.backbones["proxy"](windows)
        similarity = cosine_similarity(maps.flatten(2).transpose(1, 2))  # S
        weights = masked_similarity_attention(similarity, self.proxy_gamma, self.proxy_beta)
        return weights, tuple(maps.shape[-2:])

    def values(self, stream: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """V of X^{L-1} on a grid resized to another, (B, heads, h' * w', d_h) float32."""
        block = self.last_block
        values = block.values(block.normed(stream))[
            :, :, self.trunk.rows(grid)
        ]  # (B, heads, N, d_h)
        heads = values.shape[1]
        values = values.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
        values = F.interpolate(values.float(), size=size, mode="bilinear", align_corners=False)
        return values.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3)

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit features of the padded windows."""
        return super().encode(self.padded(windows))
