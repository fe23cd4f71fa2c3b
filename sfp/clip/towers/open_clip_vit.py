"""open_clip's own ViT: OpenAI's, LAION's, DataComp's, DFN's, MetaCLIP's, CLIPA's, CoCa's.

Pools: the class token, the mean of the patches (CLIPA), or the first query of an attention pool
(CoCa, whose other queries feed its captions).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.transformer import AttentionalPooler, VisionTransformer
from torch import Tensor, nn

from sfp.clip.block import norm_of, open_clip_block
from sfp.clip.kernels import layer_norm, linear
from sfp.clip.towers._tower import Tower, embed_patches
from sfp.errors import SFPError


class OpenCLIPTower(Tower):
    """open_clip's ``VisionTransformer``."""

    def __init__(self, visual: VisionTransformer):
        super().__init__(visual)
        if visual.pool_type not in ("tok", "avg") or getattr(visual, "attn_pool_type", ""):
            raise SFPError(
                f"This image tower pools by {visual.pool_type!r} and"
                f" {getattr(visual, 'attn_pool_type', '')!r}, which no published CLIP does; give"
                " another model."
            )
        self.blocks = [open_clip_block(module) for module in visual.transformer.resblocks]
        self.width, self.patch = visual.conv1.out_channels, visual.conv1.kernel_size[0]
        self.embed_dim, self.native_grid = visual.proj.shape[1], tuple(visual.grid_size)
        self.prefix, self.class_token = 1, True
        self.norm_pre = norm_of(visual.ln_pre)
        self.dtype = visual.conv1.weight.dtype
        self.pool = None if visual.attn_pool is None else _QueryPool(visual.attn_pool, self.dtype)
        averaged = "average" if visual.pool_type == "avg" else "token"
        self.pooling = "attention" if self.pool else averaged

    @staticmethod
    def takes(visual: nn.Module) -> bool:
        return isinstance(visual, VisionTransformer)

    @staticmethod
    def round_weights(visual: nn.Module, dtype: torch.dtype) -> None:
        for module in visual.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(dtype)
            joint = ("in_proj_weight", "in_proj_bias", "k_proj_weight", "q_proj_weight",
                     "v_proj_weight")  # fmt: skip
            for name in joint:
                parameter = getattr(module, name, None)
                if parameter is not None:
                    parameter.data = parameter.data.to(dtype)
        visual.proj.data = visual.proj.data.to(dtype)

    @property
    def prefix_tokens(self) -> Tensor:
        return self.visual.class_embedding[None]

    @property
    def positions(self) -> Tensor:
        return self.visual.positional_embedding.detach()

    @property
    def device(self) -> torch.device:
        return self.visual.proj.device

    def patches(self, windows: Tensor) -> Tensor:
        return embed_patches(windows, self.visual.conv1)

    def readout(self, tokens: Tensor) -> Tensor:
        if self.pool is not None:
            tokens = self.pool.values(tokens)
        return linear(layer_norm(tokens, self.visual.ln_post, self.dtype), self.visual.proj.T)

    def pooled(self, tokens: Tensor, patches: slice) -> Tensor:
        visual = self.visual
        if self.pool is not None:
            first = self.pool.first(tokens[:, : patches.stop])
            return linear(layer_norm(first, visual.ln_post, self.dtype), visual.proj.T)
        if visual.pool_type == "tok":
            return self.readout(tokens[:, 0])
        if visual.final_ln_after_pool:
            return self.readout(tokens[:, patches].mean(1))
        normed = layer_norm(tokens[:, patches], visual.ln_post)
        return linear(normed.mean(1).to(self.dtype), visual.proj.T)


class _QueryPool:
    """CoCa's attention pool, taken apart: learned queries attend to all tokens."""

    def __init__(self, module: AttentionalPooler, dtype: torch.dtype):
        self.module, self.dtype = module, dtype
        self.heads = module.attn.num_heads

    @property
    def maps(self) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of Q, K and V where they lie now, which may have been moved."""
        attention = self.module.attn
        if attention.in_proj_weight is None:
            weights = [getattr(attention, f"{letter}_proj_weight") for letter in "qkv"]
        else:
            weights = attention.in_proj_weight.chunk(3)
        return list(zip(weights, attention.in_proj_bias.chunk(3), strict=True))

    def values(self, tokens: Tensor) -> Tensor:
        """What the pool makes of single tokens: (..., C) to (..., D)."""
        return self._out(linear(layer_norm(tokens, self.module.ln_k, self.dtype), *self.maps[2]))

    def first(self, tokens: Tensor) -> Tensor:
        """What the first query makes of tokens (B, T, C): (B, D)."""
        query = layer_norm(self.module.query[:1], self.module.ln_q, self.dtype)
        keys = layer_norm(tokens, self.module.ln_k, self.dtype)
        of_q, of_k, of_v = self.maps
        q = linear(query, *of_q).expand(len(tokens), 1, -1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (q, linear(keys, *of_k), linear(keys, *of_v))
        )
        return self._out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])

    def _out(self, mixed: Tensor) -> Tensor:
        out = self.module.attn.out_proj
        return linear(mixed, out.weight, out.bias)
