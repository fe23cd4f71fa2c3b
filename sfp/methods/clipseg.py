"""CLIPSeg: coherence-enhanced residual attention (CRA) and deep semantic integration (DSI) (AAAI 2025; methods.md 1.10).

"Unveiling the knowledge of CLIP for training-free open-vocabulary semantic segmentation"; no code was published, and it is
not the CLIPSeg of Lüddecke and Ecker (2022). Where the text leaves something open the reading is an option, its default first.

    CRA (Eq. 3)  A = softmax(tau (S + R)), S = k_M k_M^T, k_M middle-layer keys, heads joined, rows of length one;
                 R_ij = epsilon where i and j are density-reachable in the graph S >= epsilon, else 0
    DSI          V = mean of v_L and v~_i = W_v LN1_L(x~_i), x~_i = X^{i-1} + FFN_i(X^{i-1}), i the deepest layers
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.clip.kernels import product
from sfp.clip.trunk import Hook
from sfp.errors import SFPError
from sfp.methods import METHODS, Card, Method
from sfp.methods._connected import components


@METHODS.register("CLIPSeg")
class CLIPSeg(Method):
    """Y = W_o (A V) + b_o, one A for all heads; neither residual nor FFN."""

    # M; 9 for ViT-L/14 (Fig. 3), else 7 of 12 scaled by depth; ``tools/probe_layers.py`` finds it; -1 is L, -2 is L-1 ...
    attention_layer: int | None = None
    attention: str = (
        "k-k"  # or "q-k", A of the last block as it was trained, for each head (Table 4)
    )
    epsilon: float = 0.75
    tau: float = 6.0
    # the paper's start index: -1 for v_L alone, -3 (if None) for it and v~ of blocks L-1 and L-2; or a list of these blocks
    deep_layers: Collection[int] | int | None = None
    normalise_keys: bool = True  # rows of k_M have length one
    key_heads: str = "joint"  # or one map for each head, "separate"
    epsilon_kind: str = (
        "similarity"  # epsilon bounds it from below, or the cosine "distance" from above
    )
    relation: str = (
        "connected"  # components of the graph, or "two_hop": patches with a common neighbour
    )
    relation_min_samples: int = (
        1  # patches with fewer neighbours, themselves included, link none (DBSCAN's core points)
    )
    relation_weight: str = "epsilon"  # R_ij, or the "similarity" itself
    deep_merge: str = "mean"  # of the values, or their "sum"
    deep_norm: bool = True  # LN1_L before W_v of x~
    ffn_norm: bool = True  # LN2_i inside FFN_i
    deep_stream: str = "ordinary"  # X^{i-1}, or "attention_free" from the first deep layer on
    cls_token: bool = False  # the class token is a key and value, too

    card = Card(
        "Unveiling the Knowledge of CLIP, AAAI 2025", "k-k of a middle layer + reachability", "mean of 3 blocks', attention-free",
        "L; reads M, L-2, L-1", residual=False, ffn=False,
    )  # fmt: skip
    choices = {
        "attention": ("k-k", "q-k"), "key_heads": ("joint", "separate"), "epsilon_kind": ("similarity", "distance"),
        "relation": ("connected", "two_hop"), "relation_weight": ("epsilon", "similarity"), "deep_merge": ("mean", "sum"),
        "deep_stream": ("ordinary", "attention_free"),
    }  # fmt: skip

    def prepare(self) -> None:
        published = (
            dict(attention_layer=9) if (self.trunk.layers, self.trunk.patch) == (24, 14) else None
        )
        found = self.constants(
            published, dict(attention_layer=7), attention_layer=self.attention_layer
        )
        layer, last = found["attention_layer"], self.trunk.layers
        (self.attention_layer,) = self.check_layers(
            "attention_layer", layer + last + 1 if layer < 0 else layer, last
        )
        if self.relation_min_samples < 1:
            raise SFPError(
                f"relation_min_samples of CLIPSeg is {self.relation_min_samples}; give a count of at least 1."
            )
        self.deep_layers = self._deep(-3 if self.deep_layers is None else self.deep_layers)

    def _deep(self, layers: Collection[int] | int) -> tuple[int, ...]:
        """Blocks whose attention-free values are merged with v_L, ascending."""
        last = self.trunk.layers
        if isinstance(layers, int):
            if not -last < layers < 0:
                raise SFPError(
                    f"deep_layers of CLIPSeg is {layers}; give a start index from -1 to {1 - last}, or a list of layers."
                )
            layers = range(last + 1 + layers, last)
        return tuple(sorted(self.check_layers("deep_layers", layers)))

    def tokens(self, windows: Tensor) -> Tensor:
        keys: list[Tensor] = []
        inputs: dict[int, Tensor] = {}
        middle = Hook(lambda state: keys.append(state.k), [self.attention_layer])
        deep = Hook(lambda state: inputs.update({state.layer: state.inputs}), self.deep_layers)
        stream, block = self.stream(windows, middle, deep), self.last_block
        first = 0 if self.cls_token else 1
        if self.attention == "q-k":
            q, k = (part[:, :, first:].float() for part in block.qkv(block.normed(stream), "qk"))
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        else:
            weights = self.coherent_attention(
                (keys or block.qkv(block.normed(stream), "k"))[0][:, :, first:]
            )
        values = self.integrated_values(stream, inputs)[:, :, first:]
        return block.project(product(weights.to(values.dtype), values))[:, 1 - first :]

    def coherent_attention(self, keys: Tensor) -> Tensor:
        """A of CRA: keys (B, heads, N, d_h) to (B, 1 or heads, N, N) float32."""
        keys = (
            keys.float()
            if self.key_heads == "separate"
            else keys.float().transpose(1, 2).flatten(2)[:, None]
        )  # k_M
        keys = F.normalize(keys, dim=-1) if self.normalise_keys else keys
        similarity = product(keys, keys.transpose(-2, -1))  # S
        return (self.tau * (similarity + self.reachability(similarity))).softmax(-1)

    def reachability(self, similarity: Tensor) -> Tensor:
        """R (..., N, N): the weight where i and j are related, the diagonal included, else 0."""
        near = similarity >= (
            self.epsilon if self.epsilon_kind == "similarity" else 1 - self.epsilon
        )
        near = near | torch.eye(near.shape[-1], dtype=torch.bool, device=near.device)
        if self.relation == "two_hop":
            related = product(near.float(), near.float()) > 0.5
        else:
            labels = components(near, self.relation_min_samples)
            related = labels[..., :, None] == labels[..., None, :]
        return torch.where(
            related, similarity if self.relation_weight == "similarity" else self.epsilon, 0.0
        )

    def integrated_values(self, stream: Tensor, inputs: dict[int, Tensor]) -> Tensor:
        """V of DSI, (B, heads, 1 + N, d_h), of X^{L-1} and the inputs of the deep layers."""
        last, free = self.last_block, None
        merged = [last.values(last.normed(stream))]  # v_L
        for layer in self.deep_layers:
            block = self.trunk.blocks[layer - 1]
            free = inputs[layer] if free is None or self.deep_stream == "ordinary" else free
            free = free + block.mlp(free, norm=self.ffn_norm)  # x~_i
            merged.append(last.values(last.normed(free) if self.deep_norm else free))  # v~_i
        total = torch.stack(merged).sum(0)
        return total / len(merged) if self.deep_merge == "mean" else total
