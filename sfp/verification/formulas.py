"""Methods beside their formulas, written out on open_clip's own modules without our trunk.

One window at a time, every map whole, no fused kernel: what the papers print, and nothing else.
A formula knows its attention, so that the one mistake that shapes don't show, a transposed map, is
named where it explains the features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from sfp.clip.clip import FrozenCLIP, l2_normalise
from sfp.methods import build_method
from sfp.verification.findings import Finding, failed, impossible, passed
from sfp.verification.pictures import batch_of_windows
from sfp.verification.session import Session

_NEAR = 1e-4  # of unit vectors
_TIES = 0.01  # share of patches that a threshold's last bit may move


def of_heads(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K, V of tokens (..., T, C): (..., heads, T, d_h) each."""
    joint = F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)
    parts = joint.chunk(3, -1)
    return tuple(part.unflatten(-1, (block.attn.num_heads, -1)).transpose(-2, -3) for part in parts)


def softmaxed(u: Tensor, w: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """softmax(U W^T / sqrt(d_h) + bias), (..., heads, T, T)."""
    return (u @ w.transpose(-1, -2) / u.shape[-1] ** 0.5 + bias).softmax(-1)


def mixed(block: nn.Module, weights: Tensor, v: Tensor) -> Tensor:
    """W_o concat(A V) + b_o, (..., T, C)."""
    return block.attn.out_proj((weights @ v).transpose(-2, -3).flatten(-2))


def ffn(block: nn.Module, tokens: Tensor) -> Tensor:
    return block.mlp(block.ln_2(tokens))


Turn = Callable[[Tensor], Tensor]  # what is done to the last attention: nothing, or transposing


def _clip(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    for block in blocks[:-1]:
        x = block(x[None])[0]
    q, k, v = of_heads(blocks[-1], x)
    y = x + mixed(blocks[-1], turn(softmaxed(q, k)), v)
    return y + ffn(blocks[-1], y)


def _last(x: Tensor, blocks: list[nn.Module]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X^{L-1} and the last block's Q, K, V."""
    for block in blocks[:-1]:
        x = block(x[None])[0]
    return x, *of_heads(blocks[-1], x)


def _maskclip(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    x, _, _, v = _last(x, blocks)
    y = x + mixed(blocks[-1], torch.eye(len(x), device=x.device), v)
    return y + ffn(blocks[-1], y)


def _clearclip(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    x, q, _, v = _last(x, blocks)
    return mixed(blocks[-1], turn(softmaxed(q, q)), v)


def _sclip(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    x, q, k, v = _last(x, blocks)
    y = x + mixed(blocks[-1], turn(softmaxed(q, q) + softmaxed(k, k)), v)
    return y + ffn(blocks[-1], y)


def _cliptrase(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    x, q, k, v = _last(x, blocks)
    y = x + mixed(blocks[-1], turn(softmaxed(q, q) + softmaxed(k, k) + softmaxed(v, v)), v)
    return y + ffn(blocks[-1], y)


def _naclip(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    x, _, k, v = _last(x, blocks)
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    omega = torch.zeros(len(x), len(x))
    for a, (i, j) in enumerate(places, 1):
        for b, (m, n) in enumerate(places, 1):
            omega[a, b] = -((i - m) ** 2 + (j - n) ** 2) / (2 * 5.0**2)
    omega[1:, 1:] = omega[1:, 1:].exp()
    return mixed(blocks[-1], turn(softmaxed(k, k, omega.to(x.device))), v)


def _surgery(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    """The sum over the last six blocks of v-v attention, each of the original path's input."""
    path = None
    for number, block in enumerate(blocks):
        if number >= len(blocks) - 6:
            _, _, v = of_heads(block, x)
            path = (x if path is None else path) + mixed(block, turn(softmaxed(v, v)), v)
        x = block(x[None])[0]
    return path


def _sfp(x: Tensor, blocks: list[nn.Module], grid: tuple[int, int], turn: Turn) -> Tensor:
    """SOM after each block but the last, SAE as the last one, HAI over the result."""
    total = torch.zeros(len(x) - 1, len(x) - 1, device=x.device)
    for block in blocks[:-1]:
        q, k, v = of_heads(block, x)
        weights = softmaxed(q, k)
        x = x + mixed(block, weights, v)
        x = x + ffn(block, x)
        a = weights.mean(0)
        outliers = {i for i in range(1, len(x)) if a[i, i] < a[0, i]}
        x, clean = x.clone(), x
        for i in outliers:
            around = [j for j in _neighbours(i - 1, grid) if j + 1 not in outliers]
            if around:
                x[i] = clean[[j + 1 for j in around]].mean(0)
        columns = [i - 1 for i in outliers]
        added = a[1:, 1:].clone()
        added[:, columns] = 0
        total += added
    q, k, v = of_heads(blocks[-1], x)
    logits = 0.5 * (q @ q.mT + k @ k.mT) / q.shape[-1] ** 0.5
    logits[..., 0] = -torch.inf  # patches look at patches alone
    y = mixed(blocks[-1], turn(logits.softmax(-1)), v)[1:] + 0.3 * x[0]
    total = total / total.sum(1, keepdim=True).clamp(min=1e-6)
    total = total / total.sum(0, keepdim=True).clamp(min=1e-6)
    return torch.cat([x[:1], total @ y])


def _neighbours(i: int, grid: tuple[int, int]) -> list[int]:
    h, w = grid
    row, column = divmod(i, w)
    around = [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    return [r * w + c for r, c in around if 0 <= r < h and 0 <= c < w]


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "CLIP": _clip,
    "MaskCLIP": _maskclip,
    "ClearCLIP": _clearclip,
    "SCLIP": _sclip,
    "NACLIP": _naclip,
    "CLIPtrase": _cliptrase,
    "CLIPSurgery": _surgery,
    "SFP": _sfp,
}


@torch.inference_mode()
def by_formula(
    clip: FrozenCLIP, name: str, windows: Tensor, turn: Turn = lambda weights: weights
) -> Tensor:
    """Unit features (B, N, D) of a method by its formula, of windows at the native grid."""
    visual, grid = clip.model.visual, clip.trunk.native_grid
    streams: list[Tensor] = []
    handle = visual.transformer.register_forward_pre_hook(
        lambda _, args: streams.append(args[0])  # (B, T, C) before the blocks
    )
    try:
        visual(windows)
    finally:
        handle.remove()
    blocks = list(visual.transformer.resblocks)
    found = [FORMULAS[name](stream, blocks, grid, turn)[1:] for stream in streams[0]]
    return l2_normalise(F.linear(visual.ln_post(torch.stack(found)), visual.proj.T))


def formula(session: Session, name: str, device: str = "cpu") -> Finding:
    """A method's features beside its formula's."""
    clip = session.clip(device, "fp32")
    if not has_formulas(clip):
        kind = type(clip.model.visual).__name__
        return impossible(f"formulas are written for plain CLIPs, and this tower is a {kind}")
    windows = batch_of_windows(clip, session.photograph.pixels, 1).to(clip.device)
    own = l2_normalise(build_method(name, clip)(windows)).flatten(1, 2)
    expected = by_formula(clip, name, windows)
    off = (own - expected).abs().amax(-1)
    difference, share = float(off.max()), float((off > _NEAR).float().mean())
    if share <= (_TIES if name == "SFP" else 0.0):
        return passed(f"its formula's features, difference {difference:.1e}", difference=difference)
    turned = by_formula(clip, name, windows, lambda weights: weights.mT)
    near = float((own - turned).abs().amax(-1).median())
    cause = (
        "they are those of a transposed attention"
        if near < _NEAR
        else "not those of a transposed attention either"
    )
    return failed(
        f"{100 * share:.0f}% of patches are off its formula by up to {difference:.2g}: {cause}",
        difference=difference,
    )


def has_formulas(clip: FrozenCLIP) -> bool:
    """Whether the tower is a plain CLIP's."""
    visual, block = clip.model.visual, clip.trunk.blocks[0]
    special = (block.q_norm, block.mixed_norm, block.hidden_norm, block.out_scale, block.gate)
    plain = isinstance(visual, VisionTransformer) and clip.trunk.tower.pooling == "token"
    return plain and all(part is None for part in special)
