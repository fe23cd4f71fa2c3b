"""CLIP-Surgery: v-v attention in a second path over the last blocks (Li et al., 2023; xmed-lab/CLIP_Surgery; methods.md 1.3)."""

from __future__ import annotations

import functools

from torch import Tensor

from sfp.clip.clip import unit
from sfp.clip.kernels import product
from sfp.clip.trunk import LayerState
from sfp.methods import METHODS, Card, Method
from sfp.methods._parts import second_path, self_attend


@METHODS.register("CLIPSurgery")
class CLIPSurgery(Method):
    """X_new = X^{L-6} + sum over the last 6 blocks of W_o concat(softmax(V V^T / sqrt(d_h)) V) + b_o, V of the original path.

    No FFN enters the new path; its class row is the original path's. With ``feature_surgery`` the score is
    w_c <f_i, t_c> less its mean over c, w_c = softmax_c(2 <f_cls, t_c>) / mean_c(.); for a single text it is
    <f_i, t - t_empty>, t_empty the empty text's embedding.
    """

    feature_surgery: bool = False
    blocks: int = 6  # how many of the last blocks have the new path

    card = Card("Li et al., 2023", attention="v-v, second path", layers="last 6", ffn=False)
    own_positional_resize = "bilinear"

    def prepare(self) -> None:
        self.blocks = self.check_blocks("blocks", self.blocks)

    def tokens(self, windows: Tensor) -> Tensor:
        return second_path(self, windows, self.blocks, self._term)[0][:, 1:]

    def _term(self, state: LayerState) -> Tensor:
        return self.trunk.blocks[state.layer - 1].project(self_attend(state.v, state.v))

    def see(self, windows: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Unit patch features (B, h, w, D); for feature surgery also the class token's (B, D)."""
        if not self.feature_surgery:
            return super().see(windows)
        new, stream = second_path(self, windows, self.blocks, self._term)
        grid = self.trunk.grid_of(*windows.shape[-2:])
        cls = self.trunk.step(self.trunk.layers, stream, grid)[:, 0]  # of the original path
        return unit(self.trunk.readout(new[:, 1:])).unflatten(1, grid), unit(
            self.trunk.readout(cls)
        )

    def compare(self, seen: Tensor | tuple[Tensor, Tensor], text: Tensor) -> Tensor:
        if not self.feature_surgery:
            return super().compare(seen, text)
        patches, cls = seen
        if len(text) == 1:
            return product(patches, (text - self._empty_text).T)
        importance = product(2 * cls[:, None, None], text.T).softmax(-1)  # (B, 1, 1, Q)
        weighted = product(patches, text.T) * (importance / importance.mean(-1, keepdim=True))
        return weighted - weighted.mean(-1, keepdim=True)

    @functools.cached_property
    def _empty_text(self) -> Tensor:
        return unit(self.clip.encode_text(self.clip.tokenize([""])))
