"""A transformer block, taken apart into the pieces that methods put together anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from sfp.clip.kernels import layer_norm, linear
from sfp.clip.rotary import Rotary
from sfp.errors import SFPError

_LETTERS = "qkv"


class Affine(NamedTuple):
    """A linear map x W^T + b."""

    weight: Tensor
    bias: Tensor | None = None


class Rows:
    """The linear map to some of a layer's outputs, its weights read where they lie now."""

    def __init__(self, layer: Affine | nn.Linear, rows: slice):
        self.layer, self.rows = layer, rows

    @property
    def weight(self) -> Tensor:
        return self.layer.weight[self.rows]

    @property
    def bias(self) -> Tensor | None:
        bias = self.layer.bias
        return None if bias is None else bias[self.rows]


LinearMap: TypeAlias = Affine | Rows | nn.Linear


@dataclass(eq=False, repr=False)
class Block:
    """One block, X + W_o A(n_1(X)) and then + MLP(n_2(.)), taken apart.

    Made by ``open_clip_block``, or by the file of another family of towers. What a family has
    besides, such as layer scale or rotary positions, lies inside the pieces: ``qkv`` gives queries
    and keys as they are compared, ``project`` and ``contract`` what is added to the stream. Pieces
    hold the module's own parameters, or read them at each call: weights may be moved.

    Attributes:
        heads, head_width: of the attention.
        dtype: of the weights.
        maps: of Q, K and V: one joint map, or one each.
        out: W_o. fc, proj: the MLP's two maps.
        activation: of the hidden units, see ``kernels.linear``.
        factor: QuickGELU is x sigmoid(a x) = silu(a x) / a, a = 1.702: n_2 and fc's bias take the
            factor, so that one kernel does it.
        gate: a GLU's map: hidden units are activation(gate) * fc.
        norm_1, norm_2: layer norms n_1 and n_2; None where the block has its norms at the end.
        q_norm, k_norm: of each head's queries and keys.
        mixed_norm: of what attention mixed, before W_o.
        out_norm, mlp_out_norm: of W_o's and the MLP's output.
        out_scale, mlp_scale: layer scale of both, (C,).
        mlp_in_norm, hidden_norm: further norms of the MLP, of its input and its hidden units.
        rotary: turns queries and keys by their places.
    """

    heads: int
    head_width: int
    dtype: torch.dtype
    maps: Sequence[LinearMap]
    out: LinearMap
    fc: LinearMap
    proj: LinearMap
    activation: str
    factor: float = 1.0
    gate: LinearMap | None = None
    norm_1: nn.LayerNorm | None = None
    norm_2: nn.LayerNorm | None = None
    q_norm: nn.LayerNorm | None = None
    k_norm: nn.LayerNorm | None = None
    mixed_norm: nn.LayerNorm | None = None
    out_norm: nn.LayerNorm | None = None
    mlp_out_norm: nn.LayerNorm | None = None
    out_scale: Tensor | None = None
    mlp_scale: Tensor | None = None
    mlp_in_norm: nn.LayerNorm | None = None
    hidden_norm: nn.LayerNorm | None = None
    rotary: Rotary | None = None

    @property
    def hidden_width(self) -> int:
        """M, how many hidden units the MLP has."""
        return self.fc.weight.shape[0]

    def normed(self, tokens: Tensor) -> Tensor:
        """n_1(X), (B, T, C)."""
        return self._norm(tokens, self.norm_1)

    def qkv(
        self, normed: Tensor, which: str = _LETTERS, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Q, K, V of n_1(X), or those named ("qv", "v"), biases included.

        (B, heads, T, head width) each, their norms and rotary positions included.

        Args:
            grid: (h, w) of the patches, which rotary positions need: that of the windows which went
                into the trunk last in this thread, if None. T may be that of all tokens or of the
                patches alone.
        """
        if which not in _LETTERS:  # not side by side in the weights
            return tuple(self.qkv(normed, letter, grid)[0] for letter in which)
        parts = self._mapped(normed, which)
        if self.q_norm is None and self.k_norm is None and self.rotary is None:
            return parts
        return tuple(
            self._compared(letter, part, grid) for letter, part in zip(which, parts, strict=True)
        )

    def values(self, normed: Tensor) -> Tensor:
        """V of n_1(X): (B, heads, T, head width)."""
        return self.qkv(normed, "v")[0]

    def project(self, mixed: Tensor) -> Tensor:
        """W_o concat_heads(.) + b_o: (B, heads, T, head width) to (B, T, C)."""
        mixed = mixed.transpose(1, 2).flatten(2).to(self.dtype)
        if self.mixed_norm is not None:
            mixed = layer_norm(mixed, self.mixed_norm, self.dtype)
        out = linear(mixed, self.out.weight, self.out.bias)
        return self._ended(out, self.out_norm, self.out_scale)

    def mlp(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """MLP(n_2(X)), or MLP(X), without the residual, (B, T, C)."""
        return self.contract(self.hidden(tokens, norm))

    def hidden(self, tokens: Tensor, norm: bool = True) -> Tensor:
        """The MLP's hidden units after their activation, ``factor`` times, (B, T, M)."""
        inner = self._norm(tokens, self.norm_2 if norm else None, self.factor)
        if self.mlp_in_norm is not None:
            inner = layer_norm(inner, self.mlp_in_norm, self.dtype)
        if self.gate is None:
            bias = _times(self.fc.bias, self.factor)
            return linear(inner, self.fc.weight, bias, self.activation)
        gate = linear(inner, self.gate.weight, self.gate.bias, self.activation)
        return gate * linear(inner, self.fc.weight, self.fc.bias)

    def contract(self, hidden: Tensor) -> Tensor:
        """The MLP's output (B, T, C) of what ``hidden`` returns."""
        factor = self.factor
        if self.hidden_norm is not None:
            hidden, factor = layer_norm(hidden / factor, self.hidden_norm, self.dtype), 1.0
        out = linear(hidden, self.proj.weight, _times(self.proj.bias, factor))
        if factor != 1.0:
            out = out.div_(factor)
        return self._ended(out, self.mlp_out_norm, self.mlp_scale)

    def _norm(self, tokens: Tensor, norm: nn.LayerNorm | None, factor: float = 1.0) -> Tensor:
        if norm is None:
            return (tokens * factor).to(self.dtype)
        return layer_norm(tokens, norm, self.dtype, factor)

    def _mapped(self, normed: Tensor, which: str) -> tuple[Tensor, ...]:
        """Q, K, V or some of them side by side, (B, heads, T, head width) each."""
        first, width = _LETTERS.index(which), self.heads * self.head_width
        if len(self.maps) == 1:
            own = Rows(self.maps[0], slice(first * width, (first + len(which)) * width))
            joint = linear(normed, own.weight, own.bias)
        else:
            wanted = self.maps[first : first + len(which)]
            joint = torch.cat([linear(normed, one.weight, one.bias) for one in wanted], -1)
        return (
            joint.unflatten(-1, (len(which), self.heads, self.head_width))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )

    def _compared(self, letter: str, part: Tensor, grid: tuple[int, int] | None) -> Tensor:
        """Queries or keys after their norm and turned by their places; values as they are."""
        if letter == "v":
            return part
        norm = self.q_norm if letter == "q" else self.k_norm
        if norm is not None:
            part = layer_norm(part, norm, self.dtype)
        return part if self.rotary is None else self.rotary.turn(part, grid)

    def _ended(self, out: Tensor, norm: nn.LayerNorm | None, scale: Tensor | None) -> Tensor:
        if norm is not None:
            out = layer_norm(out, norm, self.dtype)
        return out if scale is None else out * scale


def _times(bias: Tensor | None, factor: float) -> Tensor | None:
    return None if bias is None else bias * factor


def open_clip_block(module: nn.Module) -> Block:
    """The pieces of a residual attention block of open_clip, of an image or a text tower.

    Raises:
        SFPError: its attention scales cosines or heads.
    """
    attention, mlp = module.attn, module.mlp
    if any(getattr(attention, name, None) is not None for name in ("logit_scale", "head_scale")):
        raise SFPError(
            "This CLIP's attention scales cosines or heads (scaled_cosine_attn, scale_heads of its"
            " config), which no published CLIP does and SFP can't take apart; give another model."
        )
    width = attention.in_proj_weight.shape[0] // 3
    factor, activation = activation_of(mlp.gelu)
    return Block(
        heads=attention.num_heads,
        head_width=width // attention.num_heads,
        dtype=attention.in_proj_weight.dtype,
        maps=[Affine(attention.in_proj_weight, attention.in_proj_bias)],
        out=attention.out_proj,
        fc=mlp.c_fc,
        proj=mlp.c_proj,
        activation=activation,
        factor=factor,
        norm_1=module.ln_1,
        norm_2=module.ln_2,
        q_norm=norm_of(getattr(attention, "ln_q", None)),
        k_norm=norm_of(getattr(attention, "ln_k", None)),
        mixed_norm=norm_of(getattr(attention, "ln_inner", None)),
        out_norm=norm_of(getattr(module, "ln_attn", None)),
        hidden_norm=norm_of(getattr(mlp, "ln", None)),
        out_scale=scale_of(getattr(module, "ls_1", None)),
        mlp_scale=scale_of(getattr(module, "ls_2", None)),
    )


def activation_of(module: nn.Module) -> tuple[float, str]:
    """Factor and activation of ``Block``.

    Raises:
        SFPError: another than GELU, QuickGELU and SiLU.
    """
    name = type(module).__name__
    if isinstance(module, QuickGELU) or name == "QuickGELU":  # timm has its own
        return 1.702, "silu"
    if isinstance(module, nn.SiLU):
        return 1.0, "silu"
    if name == "GELUTanh" or getattr(module, "approximate", "") == "tanh":
        return 1.0, "gelu_tanh"
    if name in ("GELU", "GELU_"):
        return 1.0, "gelu"
    raise SFPError(
        f"The MLPs of this image tower have the activation {name}, which SFP does not know; give a"
        " model with GELU, QuickGELU or SiLU."
    )


def norm_of(module: nn.Module | None) -> nn.LayerNorm | None:
    """A layer norm; None for the identity, or for none.

    Raises:
        SFPError: another norm.
    """
    if module is None or isinstance(module, nn.Identity):
        return None
    if not isinstance(module, nn.LayerNorm):
        raise SFPError(
            f"This CLIP has norms of the kind {type(module).__name__}, which SFP does not know;"
            " give a model with layer norms."
        )
    return module


def scale_of(module: nn.Module | None) -> Tensor | None:
    """The weights of a layer scale; None for the identity, or for none."""
    return getattr(module, "gamma", None)
