"""GEM: iterated, normalised self-self attention in a second path (Bousselham et al., CVPR 2024).

Official repository: WalBouss/GEM.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from sfp.clip.clip import l2_normalise
from sfp.clip.trunk import LayerState
from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import second_path, self_attend
from sfp.options import Count, Range


@METHODS.register("GEM")
class GEM(Method):
    """G = X^{L-6} + sum over the last 6 blocks of W_o concat((O_V + O_K + O_Q) / 3) + b_o.

    O_u = softmax(beta u u^T) V. Each u of V, K, Q is first iterated: u <- softmax(beta u u^T) u on
    rows of length one. No FFN enters the new path.

    Args:
        depth: one more than the number of last blocks with the new path, as the authors count.
        iterations: how often u is iterated.
        temperature: inverse temperature beta; if None, d_h^{-1/2} times the image's mean
            ||LN1(X)_i||.
    """

    depth: Annotated[int, Range(1)] = 7
    iterations: Count = 1
    temperature: Annotated[float, Range(0)] | None = None

    changes = Changes(
        "Bousselham et al., CVPR 2024",
        attention="v-v, k-k, q-q iterated, second path",
        layers="last 6",
        ffn=False,
    )
    published = dict(positional_resize="antialias")

    def prepare(self) -> None:
        self.blocks = self.check_blocks("depth", self.depth - 1, self.depth)

    def tokens(self, windows: Tensor) -> Tensor:
        path, _ = second_path(self, windows, self.blocks, self._term)
        return path[:, self.patch_rows(windows)]

    def _term(self, state: LayerState) -> Tensor:
        block = self.trunk.blocks[state.layer - 1]
        values = state.v.float()
        if self.temperature is None:
            inputs = state.inputs[:, : state.rows.stop]
            norms = block.normed(inputs).float().norm(dim=-1)  # ||Z_i||, class token included
            beta = norms.mean(1)[:, None, None, None] * values.shape[-1] ** -0.5
        else:
            beta = torch.tensor(self.temperature, device=values.device)
        root = beta.sqrt()  # so that (root u) (root u)^T = beta u u^T, whatever the image's beta
        mixed = 0.0
        for u in (state.v, state.k, state.q):
            u = l2_normalise(u)
            for _ in range(self.iterations):
                u = l2_normalise(self_attend(u * root, u, scale=1.0))
            mixed = mixed + self_attend(u * root, values, scale=1.0)  # O_u
        return block.project(mixed / 3)
