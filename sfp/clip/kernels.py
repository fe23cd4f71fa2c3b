"""Linear maps, layer norm and attention in the fastest form of each device and precision.

Logits and softmax of attention are float32 in every precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfp.errors import SFPError
from sfp.transfer import require_exact_products

# of attention weights at a time: a CPU's cache, a share of a GPU's memory
_CACHE_BYTES, _GPU_BYTES = 4 << 20, 512 << 20
# matrix tiles (AMX) make the bfloat16 products of torch's fused attention on a CPU
_HAS_TILES = torch.cpu._is_amx_tile_supported()
_ONEDNN = {
    None: ("none", ""),
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """``x W^T + b`` of (..., C), then "silu", "gelu", "gelu_tanh" (its approximation) or nothing.

    On a CPU this is oneDNN's kernel, which torch by itself takes for bfloat16 only; in float32 it
    was 2.2 times as fast as MKL's on an AMD processor (docs/speed.md). It has no gradient: where
    one may be wanted, torch's own linear runs. A row's sum may be rounded differently among other
    rows: batches agree closely, not to the bit.
    """
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and _can_onednn():
        name, algorithm = _ONEDNN[activation]
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
    y = F.linear(x, weight, bias)
    if activation is None:
        return y
    if activation == "silu":
        return F.silu(y, inplace=True)
    return F.gelu(y, approximate="tanh" if activation == "gelu_tanh" else "none")


def _can_onednn() -> bool:
    # the compiler takes it for constant weights alone
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def require_precision(weight: Tensor, dtype: torch.dtype) -> None:
    """Raises SFPError where a network would run in another precision than results record."""
    if torch.is_autocast_enabled(weight.device.type):
        raise SFPError(
            "torch.autocast is on (mmengine: fp16 of test_cfg or val_cfg), which changes figures "
            "unseen; leave it out and set precision='bf16' or 'fp16' (config: model.precision)."
        )
    if (usual := torch.get_default_dtype()) != torch.float32:
        raise SFPError(
            f"torch's default dtype is {usual}, which changes figures unseen; set it back by "
            "torch.set_default_dtype(torch.float32), and precision= instead."
        )
    if dtype == torch.float32:
        require_exact_products()
    if weight.dtype != dtype:
        raise SFPError(
            f"The CLIP's weights were loaded as {dtype} and have become {weight.dtype}; load it "
            "again with precision='fp32', 'bf16' or 'fp16' (config: model.precision)."
        )


def layer_norm(
    tokens: Tensor, norm: nn.LayerNorm, dtype: torch.dtype = torch.float32, factor: float = 1.0
) -> Tensor:
    """Layer norm times a factor, computed in float32 and cast to ``dtype``."""
    weight, bias = norm.weight.float(), norm.bias.float()
    if factor != 1.0:
        weight, bias = weight * factor, bias * factor
    return F.layer_norm(tokens.float(), norm.normalized_shape, weight, bias, norm.eps).to(dtype)


@dataclass
class AttentionRows:
    """Single attention weights per head, float32, of N tokens and those before them.

    Attributes:
        cls_row: of the class token, which is the first, to each of the N, (B, heads, N); None
            without tokens before them.
        cls_column: of each of the N to the class token, (B, heads, N); None without.
        diagonal: of each of the N to itself, (B, heads, N).
    """

    cls_row: Tensor | None
    cls_column: Tensor | None
    diagonal: Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """softmax(scale Q K^T + bias) V, of (B, heads, T, head width) each.

    Args:
        scale: 1 / sqrt(head width) if None.
        causal: no token attends to those after it.
    """
    # on a CPU torch's fused attention makes all weights at once where V has another width
    slow = not _fuses_well(q.dtype) or q.shape[-1] != v.shape[-1]
    if q.device.type == "cpu" and slow and not causal:
        return attend_explicitly(q, k, v, bias=bias, scale=scale, mean=False)[0]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, is_causal=causal)


def _fuses_well(dtype: torch.dtype) -> bool:
    """Whether torch's fused attention on a CPU is a fast form: in bfloat16 without matrix tiles it
    took as long as explicit weights, or longer (docs/speed.md).
    """
    return dtype != torch.bfloat16 or _HAS_TILES


def attend_with_rows(
    q: Tensor, k: Tensor, v: Tensor, prefix: int = 1
) -> tuple[Tensor, AttentionRows]:
    """``attend`` and ``AttentionRows``, from each row's log-sum-exp: no map is made.

    ``prefix`` tokens, the class token first, come before the N others.
    """
    if (
        q.device.type == "cpu"
        and _fuses_well(q.dtype)
        and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
    ):
        mixed, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.device.type == "cuda" and _has_efficient(q.device, q.dtype):
        mixed, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
        lse = lse[..., : q.shape[2]]  # the kernel pads it
    else:
        mixed, rows, _ = attend_explicitly(q, k, v, mean=False, prefix=prefix)
        return mixed, rows
    q, k = q.float() * q.shape[-1] ** -0.5, k.float()
    diagonal = (torch.linalg.vecdot(q, k) - lse)[..., prefix:].exp()
    if not prefix:
        return mixed, AttentionRows(None, None, diagonal)
    return mixed, AttentionRows(
        cls_row=(torch.linalg.vecdot(q[:, :, :1], k[:, :, prefix:]) - lse[..., :1]).exp(),
        cls_column=(torch.linalg.vecdot(q[:, :, prefix:], k[:, :, :1]) - lse[..., prefix:]).exp(),
        diagonal=diagonal,
    )


@torch.compiler.assume_constant_result
def _has_efficient(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a GPU has memory-efficient attention, which makes the log-sum-exp: before Ampere it
    has none in bfloat16.
    """
    return dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) >= (8, 0)


def attend_explicitly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    mean: bool = True,
    prefix: int = 1,
) -> tuple[Tensor, AttentionRows, Tensor | None]:
    """``attend`` by weights made for a few images, or some rows of one, at a time.

    Args:
        mean: whether the mean map is wanted.
        prefix: how many tokens, the class token first, come before the N others.

    Returns:
        The mix (B, heads, T, head width of V), ``AttentionRows``, and the weights' mean over heads
        (B, T, T) float32 or None.
    """
    (images, heads, tokens, _), scale = q.shape, q.shape[-1] ** -0.5 if scale is None else scale
    mixed = v.new_empty(images, tokens, heads, v.shape[-1]).transpose(1, 2)
    cls_row, cls_column, diagonal = (
        torch.empty(images, heads, tokens, device=q.device) for _ in range(3)
    )
    mean_map = torch.empty(images, tokens, tokens, device=q.device) if mean else None
    share = _CACHE_BYTES if q.device.type == "cpu" else _GPU_BYTES
    budget = share // (4 * heads * tokens)  # rows of all heads
    images_at_once, rows_at_once = max(1, budget // tokens), min(max(1, budget), tokens)
    for first in range(0, images, images_at_once):
        some = slice(first, first + images_at_once)
        keys, values = k[some].float().transpose(-2, -1), v[some]
        for top in range(0, tokens, rows_at_once):
            rows = slice(top, min(top + rows_at_once, tokens))
            logits = (q[some, :, rows].float() * scale) @ keys
            if bias is not None:
                logits += bias if bias.shape[-2] == 1 else bias[..., rows, :]
            weights = logits.softmax(-1)
            mixed[some, :, rows] = weights.to(v.dtype) @ values
            cls_column[some, :, rows] = weights[..., 0]
            diagonal[some, :, rows] = weights.diagonal(offset=top, dim1=-2, dim2=-1)
            if top == 0:
                cls_row[some] = weights[:, :, 0]
            if mean_map is not None:
                mean_map[some, rows] = weights.mean(1)
    others = slice(prefix, None)
    rows = AttentionRows(cls_row[..., others], cls_column[..., others], diagonal[..., others])
    return mixed, rows if prefix else AttentionRows(None, None, diagonal), mean_map
