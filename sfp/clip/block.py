"""A transformer block of CLIP, taken apart into the pieces that methods put together anew."""

from __future__ import annotations

from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from sfp.clip.kernels import layer_norm, linear
from sfp.errors import SFPError


class Block:
    """One pre-norm transformer block, taken apart. Weights are read from open_clip's module."""

    def __init__(self, module: nn.Module):
        attention = module.attn
        if getattr(attention, "in_proj_weight", None) is None:
            raise SFPError(
                "This CLIP's attention has no joint in_proj_weight; only open_clip's plain CLIP "
                "ViTs are supported."
            )
        self.module, self.heads = module, attention.num_heads
        self.dtype = attention.in_proj_weight.dtype
        self.in_weight, self.in_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out, self.fc, self.proj = attention.out_proj, module.mlp.c_fc, module.mlp.c_proj
        # QuickGELU is x sigmoid(a x) = silu(a x) / a, a = 1.702: LN2 and fc's bias take the
        # factor, so that one kernel does it
        quick = isinstance(module.mlp.gelu, QuickGELU)
        self.factor, self.activation = (1.702, "silu") if quick else (1.0, "gelu")

    def normed(self, tokens: Tensor) -> Tensor:
        """LN1(X), (B, T, C)."""
        return layer_norm(tokens, self.module.ln_1, self.dtype)

    def qkv(self, normed: Tensor, which: str = "qkv") -> tuple[Tensor, ...]:
        """Q, K, V of LN1(X), or those named ("qv", "v"), biases included.

        (B, heads, T, head width) each.
        """
        if which not in "qkv":  # not side by side in the weights
            return tuple(self.qkv(normed, letter)[0] for letter in which)
        width, first = normed.shape[-1], "qkv".index(which)
        rows = slice(first * width, (first + len(which)) * width)
        joint = linear(
            normed, self.in_weight[rows], None if self.in_bias is None else self.in_bias[rows]
        )
        return (
            joint.unflatten(-1, (len(which), self.heads, width // self.heads))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )

    def values(self, normed: Tensor) -> Tensor:
        """V of LN1(X): (B, heads, T, head width)."""
        return self.qkv(normed, "v")[0]

    def project(self, mixed: Tensor) -> Tensor:
        """W_o concat_heads(.) + b_o: (B, heads, T, head width) to (B, T, C)."""
        return linear(
            mixed.transpose(1, 2).flatten(2).to(self.dtype), self.out.weight, self.out.bias
        )

    def mlp(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """MLP(LN2(X)), or MLP(X), without the residual, (B, T, C)."""
        return self.contract(self.hidden(tokens, norm))

    def hidden(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """The MLP's hidden units after their activation, ``factor`` times, (B, T, 4 C)."""
        inner = (
            layer_norm(tokens, self.module.ln_2, self.dtype, self.factor)
            if norm
            else (tokens * self.factor).to(self.dtype)
        )
        return linear(inner, self.fc.weight, self.fc.bias * self.factor, self.activation)

    def contract(self, hidden: Tensor) -> Tensor:
        """The MLP's output (B, T, C) of what ``hidden`` returns."""
        out = linear(hidden, self.proj.weight, self.proj.bias * self.factor)
        return out if self.factor == 1.0 else out.div_(self.factor)
