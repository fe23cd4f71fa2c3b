"""timm's ViTs as open_clip wraps them: SigLIP, EVA, Perception Encoder, ViTamin, MobileCLIP-B.

Pools: the class token, the mean of the patches, or a latent query that attends (SigLIP, PE). Where
convolutions make the patches (ViTamin, MobileCLIP-B) these stay in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent, GluMlp, Mlp, SwiGLU
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from sfp.clip.block import Block, LinearMap, Rows, activation_of, norm_of, scale_of
from sfp.clip.kernels import layer_norm, linear
from sfp.clip.rotary import Rotary
from sfp.clip.towers._tower import Tower, embed_patches
from sfp.errors import SFPError
from sfp.transfer import exact_convolutions

_POOLINGS = {"token": "token", "avg": "average", "map": "attention"}
_BLOCKS = (TimmBlock, ResPostBlock, EvaBlock, EvaBlockPostNorm)
_MODULES = ("vision_transformer", "vision_transformer_hybrid", "eva", "vitamin")  # of timm
_POST_NORM = (ResPostBlock, EvaBlockPostNorm)


class TimmTower(Tower):
    """open_clip's ``TimmModel`` around timm's ``VisionTransformer`` or ``Eva``.

    Raises:
        SFPError: blocks, pools, positions or heads of another kind.
    """

    def __init__(self, visual: TimmModel):
        super().__init__(visual)
        trunk = self.trunk = visual.trunk
        _require_plain(trunk)
        embed = trunk.patch_embed
        self.stem = embed.backbone if hasattr(embed, "backbone") else None
        self.width, self.native_grid = trunk.embed_dim, tuple(embed.grid_size)
        self.patch = embed.feat_ratio(as_scalar=True)
        self.prefix, self.class_token = trunk.num_prefix_tokens, trunk.cls_token is not None
        self.norm_pre = norm_of(trunk.norm_pre)
        self.norm, self.fc_norm = norm_of(trunk.norm), norm_of(trunk.fc_norm)
        self.dtype = trunk.blocks[0].attn.proj.weight.dtype
        module = getattr(trunk, "rope", None)
        if module is not None:
            half = getattr(trunk.blocks[0].attn, "rotate_half", False)
            self.rotary = Rotary(module, self.native_grid, self.prefix, half)
        self.blocks = [_block(module, self.dtype, self.rotary) for module in trunk.blocks]
        self.pooling = _POOLINGS[trunk.global_pool]
        self.pool = None
        if self.pooling == "attention":
            self.pool = _LatentPool(trunk.attn_pool, self.dtype)
        self.heads = [m for m in (trunk.head, *visual.head) if isinstance(m, nn.Linear)]
        self.embed_dim = self.heads[-1].out_features if self.heads else self.width

    @staticmethod
    def takes(visual: nn.Module) -> bool:
        return isinstance(visual, TimmModel)

    @staticmethod
    def round_weights(visual: nn.Module, dtype: torch.dtype) -> None:
        stem = getattr(visual.trunk.patch_embed, "backbone", None)
        kept = set() if stem is None else set(stem.modules())
        for module in visual.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in kept:
                module.to(dtype)

    @property
    def prefix_tokens(self) -> Tensor | None:
        own = (self.trunk.cls_token, self.trunk.reg_token)
        tokens = [token[0] for token in own if token is not None]
        return torch.cat(tokens) if tokens else None

    @property
    def positions(self) -> Tensor | None:
        return _positions(self.trunk)

    @property
    def device(self) -> torch.device:
        return next(self.trunk.blocks.parameters()).device

    def patches(self, windows: Tensor) -> Tensor:
        embed = self.trunk.patch_embed
        if self.stem is None:
            patches = embed_patches(windows, embed.proj)
        else:
            height, width = (side // self.patch * self.patch for side in windows.shape[-2:])
            with exact_convolutions():
                maps = embed.proj(self.stem(windows[..., :height, :width].float()))
            patches = maps.flatten(2).transpose(1, 2).float()
        norm = norm_of(getattr(embed, "norm", None))
        return patches if norm is None else layer_norm(patches, norm)

    def readout(self, tokens: Tensor) -> Tensor:
        tokens = self._normed(tokens)
        return self._projected(tokens if self.pool is None else self.pool.values(tokens))

    def pooled(self, tokens: Tensor, patches: slice) -> Tensor:
        if self.pooling == "token":
            return self.readout(tokens[:, 0])
        # a VisionTransformer pools patches alone, an Eva attends to the class token, too
        whole = getattr(self.trunk, "pool_include_prefix", self.pooling == "attention")
        tokens = tokens[:, slice(0 if whole else patches.start, patches.stop)]
        if self.pool is not None:
            return self._projected(self.pool.pooled(self._normed(tokens)))
        tokens = tokens if self.norm is None else layer_norm(tokens, self.norm)
        return self._projected(tokens.mean(1))

    def _normed(self, tokens: Tensor) -> Tensor:
        return tokens if self.norm is None else layer_norm(tokens, self.norm, self.dtype)

    def _projected(self, tokens: Tensor) -> Tensor:
        """After the pool: a last norm and the linear maps into the joint space."""
        if self.fc_norm is not None:
            tokens = layer_norm(tokens, self.fc_norm)
        tokens = tokens.to(self.dtype)
        for head in self.heads:
            tokens = linear(tokens, head.weight, head.bias)
        return tokens


class _LatentPool:
    """timm's attention pool, taken apart: latent queries attend to tokens, an MLP follows."""

    def __init__(self, module: AttentionPoolLatent, dtype: torch.dtype):
        if module.pos_embed is not None or module.mlp is None or module.pool != "token":
            raise SFPError(
                "This image tower's attention pool has positions or no MLP, which no published CLIP"
                " has; give another model."
            )
        self.module, self.dtype = module, dtype
        self.activation = activation_of(module.mlp.act)
        self.norms = [norm_of(norm) for norm in (module.q_norm, module.k_norm)]

    def values(self, tokens: Tensor) -> Tensor:
        """What the pool makes of single tokens: (..., C) to (..., C)."""
        width = self.module.kv.weight.shape[0] // 2
        weight, bias = self.module.kv.weight[width:], self.module.kv.bias
        return self._after(linear(tokens, weight, None if bias is None else bias[width:]))

    def pooled(self, tokens: Tensor) -> Tensor:
        """What the pool makes of tokens (B, T, C): (B, C)."""
        module, heads = self.module, self.module.num_heads
        latent = module.latent[:, :1].to(self.dtype)  # the first, whose output is the image's
        if isinstance(module.q, nn.Linear):
            latent = linear(latent, module.q.weight, module.q.bias)
        joint = linear(tokens, module.kv.weight, module.kv.bias)
        k, v = joint.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        q = latent.unflatten(-1, (heads, -1)).transpose(1, 2).expand(len(tokens), -1, -1, -1)
        q, k = (
            part if norm is None else layer_norm(part, norm, self.dtype)
            for part, norm in zip((q, k), self.norms, strict=True)
        )
        return self._after(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0])

    def _after(self, mixed: Tensor) -> Tensor:
        """Output projection and MLP with its residual."""
        module, (factor, activation) = self.module, self.activation
        out = linear(mixed, module.proj.weight, module.proj.bias)
        norm = norm_of(module.norm)
        inner = (out * factor) if norm is None else layer_norm(out, norm, self.dtype, factor)
        first, last = module.mlp.fc1, module.mlp.fc2
        hidden = linear(inner, first.weight, first.bias * factor, activation)
        return out + linear(hidden, last.weight, last.bias * factor) / factor


def takes_timm(name: str) -> bool:
    """Whether timm's model of that name is a ViT of this family."""
    import timm

    if not timm.is_model(name):
        return False
    kind = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    return kind in _MODULES


def _require_plain(trunk: nn.Module) -> None:
    """Raises SFPError for what is no plain ViT, a convolutional network for example."""
    what = ""
    if not isinstance(trunk, (VisionTransformer, Eva)):
        what = f"it is timm's {type(trunk).__name__}"
    elif strange := [type(b).__name__ for b in trunk.blocks if not isinstance(b, _BLOCKS)]:
        what = f"its blocks are timm's {strange[0]}"
    elif trunk.global_pool not in _POOLINGS:
        what = f"it pools by {trunk.global_pool!r}"
    elif getattr(trunk, "rope_mixed", False):
        what = "its rotary positions differ from block to block"
    if what:
        raise SFPError(
            f"This image tower is no plain ViT: {what}; give a model such as ViT-B-16,"
            " ViT-B-16-SigLIP or EVA02-B-16 (sfp.list_models() names all)."
        )


def _positions(trunk: nn.Module) -> Tensor | None:
    """Positional embedding (P + N, C), zeros for the tokens before the patches where they have
    none.
    """
    if trunk.pos_embed is None:
        return None
    positions = trunk.pos_embed.detach()[0]
    if trunk.no_embed_class and trunk.num_prefix_tokens:
        blank = positions.new_zeros(trunk.num_prefix_tokens, positions.shape[1])
        positions = torch.cat([blank, positions])
    return positions


def _block(module: nn.Module, dtype: torch.dtype, rotary: Rotary | None) -> Block:
    """The pieces of a timm block.

    Raises:
        SFPError: gates or fewer heads of keys in its attention, or another MLP.
    """
    attention = module.attn
    if (
        getattr(attention, "gate", None) is not None
        or getattr(attention, "num_kv_groups", 1) > 1
        or not hasattr(attention, "q_norm")
    ):
        raise SFPError(
            f"This image tower's attention, timm's {type(attention).__name__}, has a gate or fewer"
            " heads of keys than of queries; give a plain ViT such as ViT-B-16."
        )
    first, last = norm_of(module.norm1), norm_of(module.norm2)
    scales = {
        name: scale_of(getattr(module, f"ls{i}", None))
        if hasattr(module, f"ls{i}")
        else getattr(module, f"gamma_{i}", None)
        for i, name in ((1, "out_scale"), (2, "mlp_scale"))
    }
    ends = dict(out_norm=first, mlp_out_norm=last)
    starts = dict(norm_1=first, norm_2=last)
    return Block(
        heads=attention.num_heads,
        head_width=attention.head_dim,
        dtype=dtype,
        maps=_maps(attention),
        out=attention.proj,
        q_norm=norm_of(attention.q_norm),
        k_norm=norm_of(attention.k_norm),
        mixed_norm=norm_of(attention.norm),
        rotary=rotary,
        **scales,
        **(ends if isinstance(module, _POST_NORM) else starts),
        **_mlp(module.mlp),
    )


def _maps(attention: nn.Module) -> list[LinearMap]:
    """The linear maps of Q, K and V: a joint one, or one each."""
    if attention.qkv is None:
        return [attention.q_proj, attention.k_proj, attention.v_proj]
    return [attention.qkv if getattr(attention, "q_bias", None) is None else _EvaMap(attention)]


class _EvaMap:
    """EVA's joint map of Q, K and V, whose keys have no bias."""

    def __init__(self, attention: nn.Module):
        self.attention = attention

    @property
    def weight(self) -> Tensor:
        return self.attention.qkv.weight

    @property
    def bias(self) -> Tensor:
        q, v = self.attention.q_bias, self.attention.v_bias
        return torch.cat([q, torch.zeros_like(q), v]).to(self.weight.dtype)


def _mlp(mlp: nn.Module) -> dict[str, object]:
    """The MLP's pieces, as arguments of ``Block``."""
    if isinstance(mlp, Mlp):
        factor, activation = activation_of(mlp.act)
        found = dict(fc=mlp.fc1, proj=mlp.fc2, factor=factor)
    elif isinstance(mlp, SwiGLU):
        activation = activation_of(mlp.act)[1]
        found = dict(fc=mlp.fc1_x, gate=mlp.fc1_g, proj=mlp.fc2)
    elif isinstance(mlp, GluMlp):
        activation, half = activation_of(mlp.act)[1], mlp.fc1.weight.shape[0] // 2
        halves = [Rows(mlp.fc1, rows) for rows in (slice(0, half), slice(half, None))]
        fc, gate = halves if mlp.gate_last else reversed(halves)
        found = dict(fc=fc, gate=gate, proj=mlp.fc2)
    elif type(mlp).__name__ == "GeGluMlp":  # ViTamin's
        activation = activation_of(mlp.act)[1]
        return dict(fc=mlp.w1, gate=mlp.w0, proj=mlp.w2, activation=activation,
                    mlp_in_norm=norm_of(mlp.norm))  # fmt: skip
    else:
        raise SFPError(
            f"This image tower's MLPs are timm's {type(mlp).__name__}, which SFP can't take apart;"
            " give a plain ViT such as ViT-B-16."
        )
    return dict(**found, activation=activation, hidden_norm=norm_of(mlp.norm))
