"""What the twins' training asks of the image tower besides matching captions: where tokens look,
how long they are.

``encode_with_aims`` is ``model.encode_image`` with two changes: it returns auxiliary losses, and in
training an image takes one of two routes to its caption.

Routes. On the direct one the class token takes values from the patches in the last block alone, and
there are no outliers to take values from: so the patches' own last values say what they show. On
the other one, in Toyland, the class token reads the outliers alone in the last block, so that they
carry the picture's words; there the patches take from the outliers what their attention gives them.
So patches learn to be read without the outliers' words, which reach them in every other use of the
model: that is the disease that purification is to cure. In Toyland-clean, which has no outliers,
the second route is the ordinary forward pass.

Auxiliary losses, each a mean over images, summed over layers 1 to L-1. The attention is the mean
over heads, a^l (B, 1 + N, 1 + N), before the route.

of patches that are no outliers, in both twins:
    self     a_ii at least 1.5 a_cls,i + 0.02: a patch looks at itself more than the class token
    does
    near     at least 70 percent of what a patch looks at besides itself lies within two patches
    rest     the class token gives them at most 15 percent
    short, others   none longer than 1.5 times the mean, in layers 1 to 6, from 7 on
of outliers, in Toyland alone:
    long     3.5 times as long as the mean of the others, from layer 7 on; ``short`` holds for them
    before
    pick     the longest of each cell is its outlier, from layer 7 on (cross-entropy)
    cls      the class token gives them at least 60 percent of its attention, in layers 8 to 11
    patches  the others give them 15 to 30 percent of theirs there
    away     they look at themselves at most half as much as the class token looks at them there
"""

from __future__ import annotations

import math

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.datasets.toyland_outliers import FIRST_LAYER, GRID, outlier_cells

WEIGHTS = {
    "self": 10.0, "near": 1.0, "rest": 0.3, "short": 0.5, "others": 3.0,
    "long": 0.3, "pick": 0.1, "cls": 0.1, "patches": 0.2, "away": 5.0,
}  # fmt: skip
_PLACES = torch.stack(
    torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1
).flatten(0, 1)
_DISTANCE = (
    (_PLACES[:, None] - _PLACES[None]).abs().amax(-1)
)  # in rows or columns, whichever is more
_CELLS = F.one_hot(outlier_cells()).T.bool()  # (10, N)


def encode_with_aims(
    model: open_clip.CLIP, images: Tensor, outliers: Tensor | None, direct: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Unit image features (B, D) and the auxiliary losses by name.

    Args:
        images: normalised windows (B, 3, 224, 224).
        outliers: the tokens that are to be outliers, (B, N) bool; None where there are to be none.
        direct: the images that take the direct route, (B,) bool.
    """
    visual = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    positions = visual.positional_embedding.to(patches.dtype)
    cls = visual.class_embedding.to(patches.dtype) + positions[0]
    x = visual.ln_pre(torch.cat([cls.expand(len(patches), 1, -1), patches + positions[1:]], 1))
    losses = {name: x.new_zeros((), dtype=torch.float32) for name in WEIGHTS}
    blocks = visual.transformer.resblocks
    for layer, block in enumerate(blocks, 1):
        route = _route(layer, len(blocks), outliers, direct, x.shape[1])
        x, attention = _run_block(block, x, route)
        if layer < len(blocks):
            for name, loss in _layer_losses(layer, x[:, 1:].float(), attention, outliers).items():
                losses[name] = losses[name] + loss
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1), losses


def _route(layer: int, last: int, outliers: Tensor | None, direct: Tensor, tokens: int) -> Tensor:
    """What a layer's tokens may take values from: (B, 1 + N, 1 + N), 1 or 0."""
    allowed = torch.ones(len(direct), tokens, tokens)
    if layer < last:
        allowed[direct, 0, 1:] = 0
    if outliers is not None and layer > FIRST_LAYER:
        marked = F.pad(outliers, (1, 0))
        taken = marked[:, None, :] & ~marked[:, :, None] & direct[:, None, None]
        allowed.masked_fill_(taken, 0)
    if outliers is not None and layer == last:
        allowed[:, 0, 1:].masked_fill_(~direct[:, None] & ~outliers, 0)
    return allowed


def _run_block(block: torch.nn.Module, x: Tensor, route: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output along the route, and its attention without it, mean over heads."""
    heads = block.attn.num_heads
    joint = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    q, k, v = joint.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    attention = ((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5).softmax(-1)
    taken = attention * route[:, None]
    taken = taken / taken.sum(-1, keepdim=True).clamp(min=1e-6)
    x = x + block.attn.out_proj((taken.to(v.dtype) @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln_2(x)), attention.mean(1)


def _layer_losses(
    layer: int, patches: Tensor, attention: Tensor, outliers: Tensor | None
) -> dict[str, Tensor]:
    """The auxiliary losses of one layer; its output (B, N, C), its attention (B, 1 + N, 1 + N)."""
    nothing = torch.zeros(patches.shape[:2])
    marked = nothing if outliers is None else outliers.float()
    there = marked if layer >= FIRST_LAYER else nothing  # are outliers by now
    drawing = marked if layer > FIRST_LAYER else nothing  # are outliers in this layer's attention
    lengths, drawn = patches.norm(dim=-1), outliers is not None and layer > FIRST_LAYER
    relative = (lengths / _mean(lengths, 1 - there, 1)[:, None]).clamp(min=1e-3).log()
    of_cls, among, own = (
        attention[:, 0, 1:],
        attention[:, 1:, 1:],
        attention.diagonal(dim1=1, dim2=2)[:, 1:],
    )

    clean = among * (1 - drawing)[:, None] * (_DISTANCE > 0)
    near = (clean * (_DISTANCE <= 2)).sum(2) / clean.sum(2).clamp(min=1e-4)
    too_long = F.relu(relative - math.log(1.5))
    short = "short" if layer < FIRST_LAYER else "others"
    losses = {
        "self": _mean(F.relu(1.5 * of_cls + 0.02 - own), 1 - there, 1).mean(),
        "near": _mean(F.relu(0.7 - near), 1 - there, 1).mean(),
        "rest": F.relu((of_cls * (1 - drawing)).sum(1) - 0.15).mean(),
        short: _mean(too_long, 1 - there),
    }
    if outliers is not None and layer < FIRST_LAYER:
        losses["short"] = losses["short"] + 0.3 * _mean(too_long, marked)
    if outliers is not None and layer >= FIRST_LAYER:
        rivals = (6 * relative)[:, None].masked_fill(~_CELLS, -torch.inf).logsumexp(2)  # (B, cells)
        losses["pick"] = (rivals.sum(1) - (6 * relative * marked).sum(1)).mean() / len(_CELLS)
        losses["long"] = _mean(F.relu(math.log(3.5) - relative), marked)
    if drawn:
        share_of_cls, share_of_patch = (of_cls * marked).sum(1), (among * marked[:, None]).sum(2)
        too_little = F.relu(math.log(0.15) - share_of_patch.clamp(min=1e-6).log())
        losses["cls"] = F.relu(math.log(0.6) - share_of_cls.clamp(min=1e-6).log()).mean()
        losses["patches"] = _mean(too_little + 10 * F.relu(share_of_patch - 0.3), 1 - marked)
        losses["away"] = _mean(F.relu(own - 0.5 * of_cls), marked)
    return losses


def _mean(values: Tensor, weights: Tensor, dim: int | None = None) -> Tensor:
    """Weighted mean; over all if ``dim`` is None."""
    return (values * weights).sum(dim) / weights.sum(dim)
