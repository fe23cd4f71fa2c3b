"""RF-CLIP: tokens with one over-active channel are damped, all layers' keys guide the last block.

AAAI 2026; liblacklucy/RF-CLIP, whose order and constants are followed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import Hook, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Changes
from sfp.methods._adapted_text import AdaptedText
from sfp.methods._method import warn_once
from sfp.methods._parts import attention_map, cosine_similarity, cut_below
from sfp.options import Count, Positive, Share

# (blocks, width, patch): channels from 0
PUBLISHED_CHANNELS = {
    (12, 768, 16): (4, 162, 189, 326, 429, 474, 633, 713),
    (24, 1024, 14): (250, 261, 437, 650, 720, 779, 936, 1005),
}


@METHODS.register("RF-CLIP")
class RFCLIP(AdaptedText):
    """Y = (last(X^{L-1}) + last(G)) / 2, with both streams' patches mixed by S before.

    After every block a patch x with max over the channels D of (x_j - min x) / sum(x - min x) above
    sigma / C becomes (1 - alpha) x + alpha times the mean of its 3x3 patches. G is the mean of all
    layers' outputs, S = thr_beta(cos(G, G)) without normalisation, and last(Z) = W_o concat(A V) +
    b_o, A the mean over all layers of softmax(K K^T / sqrt(d_h)), patches alone.

    Scores are those of ``AdaptedText``, whose groups are CASS's but for complete linkage. The
    authors choose its b, a and h for each dataset; the defaults are those of Context.

    Args:
        channels: D, from 0; published for B/16 and L/14, elsewhere all channels, as the paper's
            equation has it. ``tools/probe_channels.py`` finds them.
        sigma: how much of a token's sum one channel may have, in units of 1 / C.
        alpha: share of the neighbourhood.
        beta: similarities below it are cut.
        refocus: in blocks 1 to L-1, take attention off columns that draw much of it; present in the
            code, but never on.
        refocus_threshold: the share of all attention that makes a column such a sink.
        refocus_share: what a sink keeps; the rest goes to the row's other patches.
    """

    channels: tuple[Count, ...] | None = None
    sigma: Positive = 5.0
    alpha: Share = 0.4
    beta: float = 0.4
    refocus: bool = False
    refocus_threshold: Share = 0.1
    refocus_share: Share = 0.6

    changes = Changes("AAAI 2026", "k-k of all layers", "of two streams", "1..L", False, False)

    def prepare(self) -> None:
        trunk = self.trunk
        published = PUBLISHED_CHANNELS.get((trunk.layers, trunk.width, trunk.patch))
        if self.channels is None and published is None:
            warn_once(
                f"RF-CLIP was published without channels for ViTs of {trunk.layers} blocks of width"
                f" {trunk.width} with patch {trunk.patch}; taking all channels, as the paper's"
                " equation does; tools/probe_channels.py finds some for model.channels."
            )
        self.fill(channels=published or tuple(range(trunk.width)))
        wrong = [channel for channel in self.channels if channel >= trunk.width]
        if wrong or not self.channels:
            what = f"channel {wrong[0]}" if wrong else "none"
            raise SFPError(
                f"channels of RF-CLIP name {what}, but tokens have {trunk.width} channels; give"
                f" numbers from 0 to {trunk.width - 1}."
            )

    # ------------------------------------------------------------------ trunk
    def tokens(self, windows: Tensor) -> Tensor:
        return self.walk(windows)[0]

    def walk(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Y (B, N, C) and the windows' embeddings (B, D)."""
        stream, guide, attention, cls = self.layers(windows)
        rows = self.patch_rows(windows)
        similarity = cut_below(cosine_similarity(guide[:, rows]), self.beta)  # S
        paths = [self.last(similarity @ z[:, rows], z, attention, rows) for z in (stream, guide)]
        return sum(paths) / 2, cls

    def layers(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X^{L-1} and G (B, T, C), the sum of k-k maps of blocks 1 to L-1, and the embedding
        (B, D) of X^L.
        """
        guide, attention, stream, depth = 0.0, 0.0, None, self.trunk.layers

        def gather(state: LayerState) -> Tensor:
            nonlocal guide, attention, stream
            tokens = self.denoise(state)
            guide = guide + tokens / depth
            if state.layer < depth:
                attention = attention + attention_map(state.k, state.k)
            else:
                stream = state.inputs
            return tokens

        tokens = self.all_blocks(windows, gather)
        return stream, guide, attention, self.trunk.pooled(tokens, self.grid(windows))

    def all_blocks(self, windows: Tensor, after: Callable[[LayerState], Tensor]) -> Tensor:
        """X^L (B, T, C), each block's tokens replaced by what ``after`` returns."""
        depth = self.trunk.layers
        hooks = [Hook(after, range(1, depth + 1))]
        if self.refocus:
            hooks.insert(0, Hook(self._refocus, range(1, depth), point="attention"))
        return self.stream(windows, *hooks, last=depth)

    def denoise(self, state: LayerState) -> Tensor:
        """A block's tokens, flagged patches drawn towards the mean of their 3x3 patches."""
        tokens, rows, patches = state.tokens, state.rows, state.patches
        grid = patches.transpose(1, 2).unflatten(2, state.grid)
        around = F.avg_pool2d(grid, 3, 1, padding=1).flatten(2).transpose(1, 2)  # always 9 summands
        damped = torch.lerp(patches, around, self.alpha)
        patches = torch.where(self.flagged(patches)[..., None], damped, patches)
        return torch.cat([tokens[:, : rows.start], patches, tokens[:, rows.stop :]], 1)

    def flagged(self, patches: Tensor) -> Tensor:
        """Mask (B, N) of patches (B, N, C) with one over-active channel."""
        above = patches - patches.amin(-1, keepdim=True)
        phi = above[..., list(self.channels)].amax(-1) / above.sum(-1).clamp(min=1e-8)
        return phi > self.sigma / patches.shape[-1]

    def last(self, patches: Tensor, tokens: Tensor, attention: Tensor, rows: slice) -> Tensor:
        """W_o concat(A V) + b_o of patches (B, N, C), which stand in ``rows`` of tokens."""
        block, tokens = self.last_block, tokens.clone()
        tokens[:, rows] = patches
        k, v = block.qkv(block.normed(tokens), "kv")
        maps = (attention + attention_map(k, k))[:, :, rows, rows] / self.trunk.layers
        return block.project(maps.to(v.dtype) @ v[:, :, rows])

    def _refocus(self, state: LayerState) -> Tensor:
        """The stream after attention, with what the changed map makes of the values."""
        block = self.trunk.blocks[state.layer - 1]
        before = attention_map(state.q, state.k)
        after = refocus(before, state.rows, self.refocus_threshold, self.refocus_share)
        now, then = (block.project(maps.to(state.v.dtype) @ state.v) for maps in (after, before))
        return state.tokens + now - then

    # ------------------------------------------------------------------ text
    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit patch "features" (B, h, w, D), and "cls" (B, D), the windows' unit embeddings."""
        y, cls = self.walk(windows)
        features = l2_normalise(self.trunk.readout(y)).unflatten(1, self.grid(windows))
        return {"features": features, "cls": l2_normalise(cls)}

    def image_vectors(self, windows: Tensor) -> Tensor:
        tokens = self.all_blocks(windows, self.denoise)
        return self.trunk.pooled(tokens, self.grid(windows))


def refocus(maps: Tensor, rows: slice, threshold: float, share: float) -> Tensor:
    """Attention (B, heads, T, T) with less weight of patches, ``rows``, on sinks.

    Sinks are the patches whose column, summed over the patches' rows, is above threshold (1 + N);
    they keep ``share`` of their weight, and the row's other patches get the rest in proportion.
    """
    patches = maps[:, :, rows, rows]
    sinks = patches.sum(2, keepdim=True) / rows.stop > threshold
    taken = patches * sinks
    others = patches * ~sinks
    freed = (1 - share) * taken.sum(-1, keepdim=True)
    given = freed * others / (others.sum(-1, keepdim=True) + 1e-8)
    maps = maps.clone()
    maps[:, :, rows, rows] = share * taken + others + given
    return maps
