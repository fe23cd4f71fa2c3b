"""GEM: iterated, normalised self-self attention in a second path (Bousselham et al., CVPR 2024; WalBouss/GEM; methods.md 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from sfp.clip.clip import unit
from sfp.clip.trunk import LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._parts import second_path, self_attend


@METHODS.register("GEM")
class GEM(Method):
    """G = X^{L-6} + sum over the last 6 blocks of W_o concat((O_V + O_K + O_Q) / 3) + b_o, O_u = softmax(beta u u^T) V.

    Each u of V, K, Q is first iterated: u <- softmax(beta u u^T) u on rows of length one. No FFN enters the new path.
    """

    depth: int = (
        7  # one more than the number of last blocks with the new path, as the authors count
    )
    iterations: int = 1  # how often u is iterated
    temperature: float | None = (
        None  # inverse temperature beta; if None, d_h^{-1/2} times the image's mean ||LN1(X)_i||
    )

    card = Card(
        "Bousselham et al., CVPR 2024",
        attention="v-v, k-k, q-q iterated, second path",
        layers="last 6",
        ffn=False,
    )
    own_positional_resize = "antialias"

    def prepare(self) -> None:
        self.blocks = self.check_blocks("depth", self.depth - 1, 1)
        if self.iterations < 0:
            raise SFPError(f"iterations of GEM is {self.iterations}; give a count of at least 0.")
        if self.temperature is not None and self.temperature < 0:
            raise SFPError(
                f"temperature of GEM is {self.temperature}; give a number of at least 0."
            )

    def tokens(self, windows: Tensor) -> Tensor:
        return second_path(self, windows, self.blocks, self._term)[0][:, 1:]

    def _term(self, state: LayerState) -> Tensor:
        block = self.trunk.blocks[state.layer - 1]
        values = state.v.float()
        if self.temperature is None:
            norms = block.normed(state.inputs).float().norm(dim=-1)  # ||Z_i||, class token included
            beta = norms.mean(1)[:, None, None, None] * values.shape[-1] ** -0.5
        else:
            beta = torch.tensor(self.temperature, device=values.device)
        root = beta.sqrt()  # so that (root u) (root u)^T = beta u u^T, whatever the image's beta
        mixed = 0.0
        for u in (state.v, state.k, state.q):
            u = unit(u)
            for _ in range(self.iterations):
                u = unit(self_attend(u * root, u, scale=1.0))
            mixed = mixed + self_attend(u * root, values, scale=1.0)  # O_u
        return block.project(mixed / 3)
