"""SFP as published: "Training-free open-vocabulary segmentation by purifying CLIP" (ICCV 2025).

    SOM (Eq. 4-5)   S^l = { i : a^l_{i,i} < a^l_{cls,i} }, repaired by their clean neighbours after
                    every layer l < L
    SAE (Eq. 6-7)   A = softmax(lambda (Q Q^T + K K^T) / sqrt(d_h)); F_SAE = W_o A V + b_o + 0.3 c
    HAI (Eq. 8-11)  A_HAI = Sinkhorn(sum over l < L of a^l without outlier columns);
                    F_vis = A_HAI F_SAE

c is the class token of X^{L-1}. Where the text is open the reading is an option, its default named
first. SAE's is that of all public code, not Eq. 7 as printed: docs/methods.md.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.kernels import attend_explicitly
from sfp.clip.trunk import Attention, Hook, LayerState
from sfp.methods import METHODS, Changes, Method
from sfp.methods._parts import self_attend, sinkhorn
from sfp.options import Count


@METHODS.register("SFP")
class SFP(Method):
    """SOM after layers 1..L-1, SAE as the last block, HAI over the result.

    Args:
        sae: the ordinary last block if False.
        sae_lambda: lambda.
        sae_residual: "cls": no residual, no FFN, plus sae_cls_weight c, as in all public code;
            "full": residuals around attention and FFN; "attention": the first of them, no FFN (not
            in the paper); "ffn": F_SOM + FFN of the mixed tokens, Eq. 7 as printed; "none":
            neither, as ClearCLIP. "cls" needs a class token.
        sae_cls_weight: factor of c.
        sae_values: "projected" mixes W_v LN1(F_SOM) and projects it; "literal" mixes F_SOM itself,
            as Eq. 6-7 abbreviate.
        sae_norm: LN2 before SAE's FFN, where "full" and "ffn" have one.
        sae_cls_key: whether the class token is a key and value of SAE's attention.
        hai: mix the result by A_HAI.
        hai_iterations: rounds of row and column normalisation.
        hai_first_layer: first layer l_0 of the sum.
        hai_cls: keep the class token's row and column while mixing.
        hai_rows: rows of outlier tokens are "kept", or "zeroed".
        hai_place: "before" LN_post and projection, or "after".
    """

    sae: bool = True
    sae_lambda: float = 0.5
    sae_residual: Literal["cls", "full", "attention", "ffn", "none"] = "cls"
    sae_cls_weight: float = 0.3
    sae_values: Literal["projected", "literal"] = "projected"
    sae_norm: bool = True
    sae_cls_key: bool = False
    hai: bool = True
    hai_iterations: Count = 1
    hai_first_layer: int = 1
    hai_cls: bool = False
    hai_rows: Literal["kept", "zeroed"] = "kept"
    hai_place: Literal["before", "after"] = "before"

    changes = Changes(
        "SFP, ICCV 2025",
        "softmax of q-q + k-k; HAI",
        "last block's",
        "1..L",
        residual=False,
        ffn=False,
    )
    published = dict(purify=True, pm="SOM")
    needs_class_token = True

    def prepare(self) -> None:
        self.needs_class_token = self.sae and self.sae_residual == "cls"
        (self.hai_first_layer,) = self.check_layers("hai_first_layer", self.hai_first_layer)

    def tokens(self, windows: Tensor) -> Tensor:
        return self._mix(*self._sharpened(windows))  # F_vis

    def features(self, windows: Tensor) -> Tensor:
        if self.hai_place == "before":
            return super().features(windows)
        sharpened, total = self._sharpened(windows)
        return self._mix(self.trunk.readout(sharpened), total).unflatten(1, self.grid(windows))

    def _sharpened(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        """F_SAE (B, P + N, C), and the sum of the layers' attention for HAI."""
        total, rows = None, self.patch_rows(windows)

        def integrate(state: LayerState) -> None:
            nonlocal total
            attention = self._clean_attention(state)
            total = attention.clone() if total is None else total.add_(attention)

        layers = range(self.hai_first_layer, self.trunk.layers) if self.hai else ()
        purified = self.stream(windows, Hook(integrate, layers, Attention.MAP))  # F_SOM
        if self.sae:
            sharpened = self._sae(purified, rows)
        else:
            sharpened = self.trunk.step(self.trunk.layers, purified, self.grid(windows))
        return sharpened[:, : rows.stop], total

    def _sae(self, purified: Tensor, rows: slice) -> Tensor:
        """F_SAE (B, T, C) of F_SOM, Eq. 6-7; the patches are ``rows``."""
        block = self.last_block
        q, k, v = block.qkv(block.normed(purified))
        u = torch.cat([q, k], -1)  # U U^T = Q Q^T + K K^T
        scale = self.sae_lambda * q.shape[-1] ** -0.5
        bias = None
        if not self.sae_cls_key:
            bias = u.new_full((1, u.shape[2]), float("-inf"))
            bias[:, rows] = 0
        if self.sae_values == "projected":
            mixed = block.project(self_attend(u, v, scale=scale, bias=bias))
        else:  # A_SAE averaged over heads
            mixed = attend_explicitly(u, u, v, scale=scale, bias=bias)[2] @ purified
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

    def _clean_attention(self, state: LayerState) -> Tensor:
        """a^l, its outlier columns zeroed (Eq. 8-9), (B, N, N), or with the class token."""
        attention = state.attention
        if state.outliers is not None:
            out = F.pad(state.outliers, (state.prefix, 0))
            attention = attention.masked_fill(out[:, None, :], 0.0)
            if self.hai_rows == "zeroed":
                attention = attention.masked_fill(out[:, :, None], 0.0)
        return attention if self.hai_cls else attention[:, state.prefix :, state.prefix :]

    def _mix(self, features: Tensor, total: Tensor | None) -> Tensor:
        """A_HAI F_SAE (Eq. 10-11) of features (B, P + N, C or D), the P tokens dropped."""
        before = self.trunk.prefix
        if total is None:
            return features[:, before:]
        first = 0 if self.hai_cls else before
        mixed = sinkhorn(total, self.hai_iterations) @ features[:, first:].float()
        return mixed[:, before - first :]
