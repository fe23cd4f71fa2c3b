"""The frozen image trunk of a CLIP ViT, layer by layer, with hooks.

Whose ViT it is (open_clip's own, timm's), is the tower's matter: ``sfp/clip/towers``.

``ImageTrunk.run`` walks the blocks and hands each one's ``LayerState`` to the hooks that ask for
that layer. A hook that returns tokens replaces them, one that returns nothing observes. Attention
weights are made only in layers where a hook asks for them; elsewhere fused attention runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfp.clip.block import Block
from sfp.clip.kernels import (
    attend,
    attend_explicitly,
    attend_with_rows,
    layer_norm,
    require_precision,
)
from sfp.clip.positions import resize_positions
from sfp.clip.towers import family_of
from sfp.errors import SFPError

_CACHE_BYTES = 16 << 20


class Attention(IntEnum):
    """How much of a layer's attention weights a hook asks for."""

    NONE = 0
    ROWS = 1  # the class token's row and column, and the diagonal, per head
    MAP = 2  # also the whole map, averaged over heads


@dataclass
class LayerState:
    """What one block did. N patches on ``grid`` = (h, w), row-major; P tokens come before them, the
    class token first where there is one, and appended tokens, if any, last: T = P + N + R. P is 1
    in OpenAI's CLIP.

    Attributes:
        layer: 1-based block number l.
        grid: (h, w).
        inputs: X^{l-1}, (B, T, C).
        tokens: X^l, (B, T, C); at the hook points "attention" and "neurons", the stream before the
            MLP.
        q, k, v: (B, heads, T, head width), biases included.
        prefix: P.
        cls_row: attention of the class token to each patch, (B, heads, N), if asked for and there
            is one.
        cls_column: attention of each patch to the class token, (B, heads, N), likewise.
        diagonal: attention of each patch to itself, (B, heads, N), if asked for.
        attention: a^l, the map averaged over heads, (B, P + N, P + N), if asked for. It was made
            over all T tokens; rows and columns of appended ones are left out.
        hidden: the MLP's hidden units after their activation, ``Block.factor`` times,
            (B, T, M), at the hook point "neurons".
        outliers: mask (B, N), set by the purifying hook.
        outlier_scores: the scores behind it, (B, N).
        before_repair: the tokens as they were before that hook, (B, T, C); None without it.
    """

    layer: int
    grid: tuple[int, int]
    inputs: Tensor
    tokens: Tensor
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    cls_row: Tensor | None = None
    cls_column: Tensor | None = None
    diagonal: Tensor | None = None
    attention: Tensor | None = None
    hidden: Tensor | None = None
    outliers: Tensor | None = None
    outlier_scores: Tensor | None = None
    before_repair: Tensor | None = None
    prefix: int = 1

    def require_finite(self) -> None:
        """Raises SFPError where tokens are NaN or infinite, naming the layer and the precision."""
        if not bool(self.tokens.sum().isfinite()):  # a hundredth of asking each
            precision = str(self.q.dtype).removeprefix("torch.")
            raise SFPError(
                f"The tokens of layer {self.layer} of the image tower are NaN or infinite in "
                f"{precision}; give precision='fp32' or 'bf16' (config: model.precision), or in "
                "fp32 other weights."
            )

    @property
    def count(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def rows(self) -> slice:
        """The patches' rows among the tokens."""
        return slice(self.prefix, self.prefix + self.count)

    @property
    def patches(self) -> Tensor:
        """X^l_pat, (B, N, C)."""
        return self.tokens[:, self.rows]

    @property
    def patch_attention(self) -> Tensor:
        """a^l of patches to patches, (B, N, N)."""
        return self.attention[:, self.prefix :, self.prefix :]

    @property
    def head_attention(self) -> Tensor:
        """Each head's map, whose mean is a^l: (B, heads, P + N, P + N) float32, made anew at each
        asking, all rows at once.
        """
        q, k = self.q.float() * self.q.shape[-1] ** -0.5, self.k.float()
        kept = self.rows.stop
        return (q[:, :, :kept] @ k.mT).softmax(-1)[..., :kept]

    @property
    def unrepaired(self) -> Tensor:
        """X^l as the block made it, (B, T, C)."""
        return self.tokens if self.before_repair is None else self.before_repair

    @property
    def cls(self) -> Tensor:
        """X^l_cls, (B, C), of a tower with a class token."""
        return self.tokens[:, 0]


@dataclass
class Hook:
    """A function on the states of some layers.

    Attributes:
        function: takes a ``LayerState``; returns what replaces the state's tokens (B, T, C), or its
            hidden units at the point "neurons"; or nothing.
        layers: 1-based block numbers.
        attention: what the function reads of the attention weights.
        point: "block" (the block's output), "attention" (the stream after attention, before
            the MLP) or "neurons" (the MLP's hidden units).
    """

    function: Callable[[LayerState], Tensor | None]
    layers: Collection[int]
    attention: Attention = Attention.NONE
    point: str = "block"


def caching_hook(**layers: Collection[int]) -> tuple[Hook, dict[tuple[str, int], Tensor]]:
    """A hook that keeps parts of layer states, and the cache that it fills.

    Args:
        layers: for each attribute of ``LayerState`` the layers at which it is kept.

    Returns:
        The hook, and the cache: ``cache["k", 7]`` are the keys of block 7.
    """
    cache: dict[tuple[str, int], Tensor] = {}

    def keep(state: LayerState) -> None:
        for name, wanted in layers.items():
            if state.layer in wanted:
                cache[name, state.layer] = getattr(state, name)

    every = {layer for wanted in layers.values() for layer in wanted}
    rows = {"cls_row", "cls_column", "diagonal"} & set(layers)
    needed = Attention.MAP if "attention" in layers else Attention.ROWS if rows else Attention.NONE
    return Hook(keep, every, needed), cache


class ImageTrunk:
    """Image tower of a frozen CLIP ViT: patch embedding, blocks, readout.

    Attributes:
        tower: what is particular to its family.
        layers: number of blocks L.
        width: C. heads: heads per block. patch: patch size in pixels. native_grid: (g, g) that
            it was trained at.
        prefix: P, how many tokens come before the patches: a class token, trained registers, or
            none.
        class_token: whether the first of them is a class token.
    """

    def __init__(self, visual: nn.Module):
        self.visual, self.tower = visual, family_of(visual)(visual)
        tower = self.tower
        self.blocks: list[Block] = tower.blocks
        self.layers, self.heads = len(self.blocks), self.blocks[0].heads
        self.width, self.patch = tower.width, tower.patch
        self.native_grid, self.dtype = tower.native_grid, tower.dtype
        self.prefix, self.class_token = tower.prefix, tower.class_token
        self._positions: dict[tuple[tuple[int, int], str], Tensor] = {}
        self._at_once: dict[tuple[int, int, torch.device], int] = {}

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Patch grid (h, w) of a window; remainders smaller than a patch are dropped.

        Raises:
            SFPError: the window is smaller than a patch.
        """
        grid = (height // self.patch, width // self.patch)
        if 0 in grid:
            raise SFPError(
                f"A window of {height}x{width} pixels is smaller than one patch ({self.patch}); "
                f"use larger windows or pictures."
            )
        return grid

    def windows_at_once(self, height: int, width: int) -> int:
        """How many windows of that size go best through the trunk as one batch.

        On a CPU so many that the widest activation, the MLP's, stays in its cache: a larger batch
        is slower (docs/speed.md). On a GPU as many as half of the memory holds that was free when
        it was first asked for the size, 256 at most: more gain nothing.
        """
        h, w = self.grid_of(height, width)
        tokens, bytes_of = self.prefix + h * w, self.dtype.itemsize
        device, hidden = self.tower.device, self.blocks[0].hidden_width
        if device.type != "cuda":
            return max(1, _CACHE_BYTES // (tokens * hidden * bytes_of))
        # tokens, q, k, v, hidden layer; float32 copies of tokens
        stream = tokens * ((8 * self.width + hidden) * bytes_of + self.width * 3 * 4)
        maps = tokens * tokens * 4 * 6  # those that methods make of a whole batch
        kept = self._at_once.get((h, w, device))
        if kept is None:  # asking the driver is slow
            if len(self._at_once) > 32:  # as in _positions_for
                self._at_once.clear()
            reserved, held = (
                ask(device) for ask in (torch.cuda.memory_reserved, torch.cuda.memory_allocated)
            )
            free = torch.cuda.mem_get_info(device)[0] + reserved - held  # torch's own, not in use
            kept = max(1, min(256, free // 2 // (stream + maps)))
            self._at_once[h, w, device] = kept
        return kept

    def embed(self, windows: Tensor, resize: str = "scale", registers: int = 0) -> Tensor:
        """X^0 = ln_pre([cls, patches] + positions, zeros): (B, 3, H, W) to (B, P + N + R, C).

        ``resize``: see ``resize_positions``; R is ``registers``, tokens that begin as zeros.
        """
        if windows.ndim != 4 or windows.shape[1] != 3 or not windows.is_floating_point():
            raise SFPError(
                f"Windows must be a float tensor (B, 3, H, W), got {tuple(windows.shape)} "
                f"{windows.dtype}; "
                "make one with the clip's normalise."
            )
        grid, tower = self.grid_of(*windows.shape[-2:]), self.tower
        require_precision(self.blocks[0].out.weight, self.dtype)
        tokens = tower.patches(windows)
        if tower.rotary is not None:
            tower.rotary.grid = grid
        if tower.prefix_tokens is not None:
            tokens = torch.cat([tower.prefix_tokens.expand(len(tokens), -1, -1), tokens], 1)
        if tower.positions is not None:
            tokens = tokens + self._positions_for(grid, resize)
        if registers:
            tokens = F.pad(tokens, (0, 0, 0, registers))
        return tokens if tower.norm_pre is None else layer_norm(tokens, tower.norm_pre)

    def _positions_for(self, grid: tuple[int, int], resize: str) -> Tensor:
        native = self.tower.positions
        kept = self._positions.get((grid, resize))
        if kept is None or kept.device != native.device:
            if len(self._positions) > 32:  # whole-image mode meets many grids
                self._positions.clear()
            kept = resize_positions(native, self.native_grid, grid, resize, self.prefix)
            if not torch.compiler.is_compiling():  # a CUDA graph writes over its tensors
                self._positions[grid, resize] = kept
        return kept

    def rows(self, grid: tuple[int, int]) -> slice:
        """The patches' rows among the tokens of a window with that grid."""
        return slice(self.prefix, self.prefix + grid[0] * grid[1])

    def run(
        self,
        windows: Tensor,
        hooks: Sequence[Hook] = (),
        last: int | None = None,
        resize: str = "scale",
        registers: int = 0,
    ) -> Tensor:
        """Blocks 1..last on windows (B, 3, H, W) float, with so many appended tokens.

        X^last, (B, P + N + R, C). ``last`` is L if not given.
        """
        tokens = self.embed(windows, resize, registers)
        grid = self.grid_of(*windows.shape[-2:])
        for layer in range(1, 1 + (self.layers if last is None else last)):
            here = [hook for hook in hooks if layer in hook.layers]
            tokens = self.step(layer, tokens, grid, here)
        return tokens

    def begin(self, layer: int, tokens: Tensor, grid: tuple[int, int]) -> LayerState:
        """The state of a block that has got no further than Q, K and V.

        Its tokens are its inputs.
        """
        block = self.blocks[layer - 1]
        parts = block.qkv(block.normed(tokens), grid=grid)
        return LayerState(layer, grid, tokens, tokens, *parts, prefix=self.prefix)

    def step(
        self, layer: int, tokens: Tensor, grid: tuple[int, int], hooks: Sequence[Hook] = ()
    ) -> Tensor:
        """One block with its hooks: X^{l-1} to X^l, (B, T, C)."""
        block, state = self.blocks[layer - 1], self.begin(layer, tokens, grid)
        mixed = _attend(state, max([Attention.NONE, *[hook.attention for hook in hooks]]))
        state.tokens = tokens + block.project(mixed)
        _call(hooks, "attention", state)
        state.hidden = block.hidden(state.tokens)
        _call(hooks, "neurons", state)
        state.tokens = state.tokens + block.contract(state.hidden)
        state.hidden = None  # the largest tensor of a block
        _call(hooks, "block", state)
        return state.tokens

    def readout(self, tokens: Tensor) -> Tensor:
        """Single tokens past LN_post and the projection P into the joint space.

        (..., C) to (..., D), not normalised. Where a pool attends to tokens: ``Tower.readout``.
        """
        return self.tower.readout(tokens)

    def pooled(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The image's embedding of X^L, (B, T, C) to (B, D), not normalised.

        That of the class token, of the patches' mean, or of the pool that attends to them.
        """
        return self.tower.pooled(tokens, self.rows(grid))


def _call(hooks: Sequence[Hook], point: str, state: LayerState) -> None:
    for hook in hooks:
        if hook.point == point:
            replaced = hook.function(state)
            if replaced is not None:
                setattr(state, "hidden" if point == "neurons" else "tokens", replaced)


def _attend(state: LayerState, wanted: Attention) -> Tensor:
    """softmax(Q K^T / sqrt(d_h)) V, (B, heads, T, head width).

    Fills the state's attention as far as wanted.
    """
    q, k, v = state.q, state.k, state.v
    if wanted == Attention.NONE:
        return attend(q, k, v)
    if wanted == Attention.ROWS:
        mixed, rows = attend_with_rows(q, k, v, state.prefix)
    else:
        mixed, rows, attention = attend_explicitly(q, k, v, prefix=state.prefix)
        kept = state.rows.stop
        state.attention = attention[:, :kept, :kept]
    for name in ("cls_row", "cls_column", "diagonal"):
        weights = getattr(rows, name)
        setattr(state, name, None if weights is None else weights[..., : state.count])
    return mixed
