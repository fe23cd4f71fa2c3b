"""CLIP-Surgery: v-v attention in a second path over the last blocks (Li et al., 2023).

Official repository: xmed-lab/CLIP_Surgery.
"""

from __future__ import annotations

from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.kernels import linear
from sfp.clip.trunk import LayerState
from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import second_path, self_attend
from sfp.stages import Text, View


@METHODS.register("CLIPSurgery")
class CLIPSurgery(Method):
    """X_new = X^{L-6} + sum over the last 6 blocks of W_o concat(softmax(V V^T / sqrt(d_h)) V) +
    b_o.

    V are the original path's; no FFN enters the new path; its class row is the original path's.

    Args:
        feature_surgery: the score is w_c <f_i, t_c> less its mean over c, w_c =
            softmax_c(2 <f_cls, t_c>) / mean_c(.); for a single text it is <f_i, t - t_empty>,
            t_empty the empty text's embedding.
        blocks: how many of the last blocks have the new path.
    """

    feature_surgery: bool = False
    blocks: int = 6

    changes = Changes("Li et al., 2023", attention="v-v, second path", layers="last 6", ffn=False)
    published = dict(positional_resize="bilinear")

    def prepare(self) -> None:
        self.check_blocks("blocks", self.blocks, self.blocks)
        if self.feature_surgery:
            empty = self.clip.encode_text(self.clip.tokenize([""]))
            self.empty_text = l2_normalise(empty).cpu()

    def tokens(self, windows: Tensor) -> Tensor:
        path, _ = second_path(self, windows, self.blocks, self._term)
        return path[:, self.patch_rows(windows)]

    def _term(self, state: LayerState) -> Tensor:
        return self.trunk.blocks[state.layer - 1].project(self_attend(state.v, state.v))

    def encode(self, windows: Tensor) -> dict[str, Tensor]:
        """Unit patch "features"; for feature surgery also "cls", the original path's embedding of
        each window.
        """
        if not self.feature_surgery:
            return super().encode(windows)
        new, stream = second_path(self, windows, self.blocks, self._term)
        grid = self.grid(windows)
        cls = self.trunk.pooled(self.trunk.step(self.trunk.layers, stream, grid), grid)
        patches = self.trunk.readout(new[:, self.patch_rows(windows)]).unflatten(1, grid)
        return {
            "features": l2_normalise(patches),
            "cls": l2_normalise(cls),
        }

    def score(self, view: View, text: Text) -> Tensor:
        if not self.feature_surgery:
            return super().score(view, text)
        if len(text) == 1:
            return linear(view["features"], text.vectors - self.empty_text.to(text.vectors))
        importance = linear(2 * view["cls"], text.vectors).softmax(-1)
        importance = importance / importance.mean(-1, keepdim=True)  # (n, Q)
        weighted = linear(view["features"], text.vectors) * importance[:, None, None]
        return weighted - weighted.mean(-1, keepdim=True)
