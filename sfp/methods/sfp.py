"""SFP: "SFP: training-free open-vocabulary segmentation by purifying CLIP's features" as published (ICCV 2025).

    SOM (Eq. 4-5)   S^l = { i : a^l_{i,i} < a^l_{cls,i} }, repaired by their clean neighbours after every layer l < L
    SAE (Eq. 6-7)   A = softmax(lambda (Q Q^T + K K^T) / sqrt(d_h)); F_SAE = W_o A V + b_o + 0.3 c
    HAI (Eq. 8-11)  A_HAI = Sinkhorn(sum over l < L of a^l without outlier columns); F_vis = A_HAI F_SAE

c is the class token of X^{L-1}. Where the text is open (methods.md 1.11) the reading is an option,
its default named first. SAE's is that of all public code, not Eq. 7 as printed: docs/methods.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.kernels import attend_explicitly, product
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._parts import self_attend, sinkhorn


@METHODS.register("SFP")
class SFP(Method):
    """SOM after layers 1..L-1, SAE as the last block, HAI over the result."""

    sae: bool = True  # the ordinary last block if False
    sae_lambda: float = 0.5
    # "cls": no residual, no FFN, plus sae_cls_weight c, as in all public code; "full": residuals
    # around attention and FFN; "attention": the first of them, no FFN (not in the paper); "ffn":
    # F_SOM + FFN of the mixed tokens, Eq. 7 as printed; "none": neither, as ClearCLIP
    sae_residual: str = "cls"
    sae_cls_weight: float = 0.3
    sae_values: str = (
        "projected"  # W_o A W_v LN1(F_SOM), or "literal": A F_SOM, as Eq. 6-7 abbreviate
    )
    sae_norm: bool = True  # LN2 before SAE's FFN, where "full" and "ffn" have one
    sae_cls_key: bool = False  # whether the class token is a key and value of SAE's attention
    hai: bool = True
    hai_iterations: int = 1  # rounds of row and column normalisation
    hai_first_layer: int = 1  # first layer l_0 of the sum
    hai_cls: bool = False  # keep the class token's row and column while mixing
    hai_rows: str = "kept"  # rows of outlier tokens, or "zeroed"
    hai_place: str = "before"  # LN_post and projection, or "after"

    card = Card("SFP, ICCV 2025", "softmax of q-q + k-k; HAI", "last block's", "1..L", False, False)
    own_purify = True
    own_pm = "SOM"
    choices = {
        "sae_residual": ("cls", "full", "attention", "ffn", "none"),
        "sae_values": ("projected", "literal"),
        "hai_rows": ("kept", "zeroed"),
        "hai_place": ("before", "after"),
    }

    def prepare(self) -> None:
        if self.hai_iterations < 0:
            raise SFPError(
                f"hai_iterations of SFP is {self.hai_iterations}; give a count of at least 0."
            )
        (self.hai_first_layer,) = self.check_layers("hai_first_layer", self.hai_first_layer)

    def tokens(self, windows: Tensor) -> Tensor:
        return self._mix(*self._sharpened(windows))  # F_vis

    def features(self, windows: Tensor) -> Tensor:
        if self.hai_place == "before":
            return super().features(windows)
        sharpened, total = self._sharpened(windows)
        return self._mix(self.trunk.readout(sharpened), total).unflatten(
            1, self.trunk.grid_of(*windows.shape[-2:])
        )

    def _sharpened(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """F_SAE (B, 1 + N, C), and the sum of the layers' attention for HAI."""
        last = self.trunk.layers - 1
        total: list[Tensor] = []
        integrate = Hook(
            lambda state: self._integrate(state, total),
            range(self.hai_first_layer, last + 1),
            Attention.MAP,
        )
        purified = self.stream(windows, *([integrate] if self.hai else []))  # F_SOM
        grid = self.trunk.grid_of(*windows.shape[-2:])
        sharpened = (
            self._sae(purified) if self.sae else self.trunk.step(self.trunk.layers, purified, grid)
        )
        return sharpened, total[0] if total else None

    def _sae(self, purified: Tensor) -> Tensor:
        """F_SAE (B, 1 + N, C) of F_SOM, Eq. 6-7."""
        block = self.last_block
        q, k, v = block.qkv(block.normed(purified))
        u = torch.cat([q, k], -1)  # U U^T = Q Q^T + K K^T
        scale = self.sae_lambda * q.shape[-1] ** -0.5
        bias = (
            None
            if self.sae_cls_key
            else F.pad(u.new_zeros(1, u.shape[2] - 1), (1, 0), value=float("-inf"))
        )
        if self.sae_values == "projected":
            mixed = block.project(self_attend(u, v, scale=scale, bias=bias))
        else:
            mixed = product(
                attend_explicitly(u, u, v, scale=scale, bias=bias)[2], purified
            )  # A_SAE averaged over heads
        if self.sae_residual == "cls":
            return mixed + self.sae_cls_weight * purified[:, :1]
        if self.sae_residual == "full":
            stream = purified + mixed
            return stream + block.mlp(stream, norm=self.sae_norm)
        if self.sae_residual == "attention":
            return purified + mixed
        if self.sae_residual == "ffn":
            return purified + block.mlp(mixed, norm=self.sae_norm)
        return mixed

    def _integrate(self, state: LayerState, total: list[Tensor]) -> None:
        """Add a^l, its outlier columns zeroed, to the sum over layers (Eq. 8-9)."""
        attention = state.attention
        if state.outliers is not None:
            out = torch.cat([torch.zeros_like(state.outliers[:, :1]), state.outliers], 1)
            attention = attention.masked_fill(out[:, None, :], 0.0)
            if self.hai_rows == "zeroed":
                attention = attention.masked_fill(out[:, :, None], 0.0)
        attention = attention if self.hai_cls else attention[:, 1:, 1:]
        if total:
            total[0] += attention
        else:
            total.append(attention.clone())

    def _mix(self, features: Tensor, total: Tensor | None) -> Tensor:
        """A_HAI F_SAE (Eq. 10-11), the class token dropped; features (B, 1 + N, C or D)."""
        if total is None:
            return features[:, 1:]
        first = 0 if self.hai_cls else 1
        return product(sinkhorn(total, self.hai_iterations), features[:, first:].float())[
            :, 1 - first :
        ]
