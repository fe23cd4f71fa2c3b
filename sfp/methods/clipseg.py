"""CLIPSeg: coherence-enhanced residual attention (CRA) and deep semantic integration (DSI).

"Unveiling the Knowledge of CLIP for Training-Free Open-Vocabulary Semantic Segmentation", AAAI
2025. No code was published, and it is not the CLIPSeg of Lüddecke and Ecker (2022). Where the text
leaves something open the reading is an option, its default first.

    CRA (Eq. 3)  A = softmax(tau (S + R)), S = k_M k_M^T, k_M middle-layer keys, heads joined, rows
                 of length one; R_ij = epsilon where i and j are density-reachable in the graph
                 S >= epsilon, else 0
    DSI          V = mean of v_L and v~_i = W_v LN1_L(x~_i), x~_i = X^{i-1} + FFN_i(X^{i-1}), i the
                 deepest layers
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfp.errors import SFPError
from sfp.methods import METHODS, Changes, Method
from sfp.methods._connected import components
from sfp.options import Range


@METHODS.register("CLIPSeg")
class CLIPSeg(Method):
    """Y = W_o (A V) + b_o, one A for all heads; neither residual nor FFN.

    Args:
        attention_layer: M; -1 is L, -2 is L-1 ...; if None 9 for ViT-L/14 (Fig. 3), else 7 of 12
            scaled by depth; ``tools/probe_layers.py`` finds it.
        attention: "k-k", or "q-k": A of the last block as trained, for each head (Table 4).
        epsilon: least similarity of neighbours in the graph, and R's weight.
        tau: temperature.
        deep_layers: the paper's start index: -1 for v_L alone, -3 (if None) for it and v~ of blocks
            L-1 and L-2; or a list of these blocks.
        normalise_keys: rows of k_M have length one.
        key_heads: heads are "joint" in one map, or one map for each, "separate".
        epsilon_kind: "similarity": epsilon bounds it from below; "distance": the cosine distance
            from above.
        relation: "connected" components of the graph, or "two_hop": patches with a common
            neighbour.
        relation_min_samples: patches with fewer neighbours, themselves included, link none (core
            points of DBSCAN).
        relation_weight: R_ij is "epsilon", or the "similarity" itself.
        deep_merge: "mean" of the values, or their "sum".
        deep_norm: LN1_L before W_v of x~.
        ffn_norm: LN2_i inside FFN_i.
        deep_stream: "ordinary" X^{i-1}, or "attention_free" from the first deep layer on.
        cls_token: the class token is a key and value, too.
    """

    attention_layer: int | None = None
    attention: Literal["k-k", "q-k"] = "k-k"
    epsilon: float = 0.75
    tau: float = 6.0
    deep_layers: Collection[int] | int | None = None
    normalise_keys: bool = True
    key_heads: Literal["joint", "separate"] = "joint"
    epsilon_kind: Literal["similarity", "distance"] = "similarity"
    relation: Literal["connected", "two_hop"] = "connected"
    relation_min_samples: Annotated[int, Range(1)] = 1
    relation_weight: Literal["epsilon", "similarity"] = "epsilon"
    deep_merge: Literal["mean", "sum"] = "mean"
    deep_norm: bool = True
    ffn_norm: bool = True
    deep_stream: Literal["ordinary", "attention_free"] = "ordinary"
    cls_token: bool = False

    changes = Changes(
        "Unveiling the Knowledge of CLIP, AAAI 2025",
        "k-k of a middle layer + reachability",
        "mean of 3 blocks', attention-free",
        "L; reads M, L-2, L-1",
        residual=False,
        ffn=False,
    )

    def prepare(self) -> None:
        of_l14 = dict(attention_layer=9) if self._is_l14() else None
        self.fill_constants(dict(attention_layer=7), of_l14)
        (self.attention_layer,) = self.check_layers(
            "attention_layer", self.attention_layer, self.trunk.layers
        )
        self.fill(deep_layers=self._deep(-3))
        self.deep_layers = self._deep(self.deep_layers)

    def _is_l14(self) -> bool:
        return (self.trunk.layers, self.trunk.patch) == (24, 14)

    def _deep(self, layers: Collection[int] | int) -> tuple[int, ...]:
        """Blocks whose attention-free values are merged with v_L, ascending."""
        last = self.trunk.layers
        if isinstance(layers, int):
            if not -last < layers < 0:
                raise SFPError(
                    f"deep_layers of CLIPSeg is {layers}; give a start index from -1 to {1 - last},"
                    " or a list of layers."
                )
            layers = range(last + 1 + layers, last)
        return tuple(sorted(self.check_layers("deep_layers", layers)))

    def tokens(self, windows: Tensor) -> Tensor:
        middle = {self.attention_layer} - {self.trunk.layers}
        stream, cache = self.run_with_cache(windows, k=middle, inputs=self.deep_layers)
        block, patches = self.last_block, self.patch_rows(windows)
        taken = slice(None) if self.cls_token else patches
        if self.attention == "q-k":
            q, k = (part[:, :, taken].float() for part in block.qkv(block.normed(stream), "qk"))
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        else:
            (keys,) = (
                [cache["k", self.attention_layer]]
                if middle
                else block.qkv(block.normed(stream), "k")
            )
            weights = self.coherent_attention(keys[:, :, taken])
        values = self.integrated_values(stream, cache)[:, :, taken]
        mixed = block.project(weights.to(values.dtype) @ values)
        return mixed[:, patches] if self.cls_token else mixed

    def coherent_attention(self, keys: Tensor) -> Tensor:
        """A of CRA: keys (B, heads, N, d_h) to (B, 1 or heads, N, N) float32."""
        keys = keys.float()
        if self.key_heads == "joint":
            keys = keys.transpose(1, 2).flatten(2)[:, None]  # k_M
        keys = F.normalize(keys, dim=-1) if self.normalise_keys else keys
        similarity = keys @ keys.transpose(-2, -1)  # S
        return (self.tau * (similarity + self.reachability(similarity))).softmax(-1)

    def reachability(self, similarity: Tensor) -> Tensor:
        """R (..., N, N): the weight where i and j are related, the diagonal included, else 0."""
        least = self.epsilon if self.epsilon_kind == "similarity" else 1 - self.epsilon
        diagonal = torch.eye(similarity.shape[-1], dtype=torch.bool, device=similarity.device)
        near = (similarity >= least) | diagonal
        if self.relation == "two_hop":
            related = near.float() @ near.float() > 0.5
        else:
            labels = components(near, self.relation_min_samples)
            related = labels[..., :, None] == labels[..., None, :]
        weight = similarity if self.relation_weight == "similarity" else self.epsilon
        return torch.where(related, weight, 0.0)

    def integrated_values(self, stream: Tensor, cache: Mapping[tuple[str, int], Tensor]) -> Tensor:
        """V of DSI, (B, heads, T, d_h), of X^{L-1} and the inputs of the deep layers."""
        last, free = self.last_block, None
        merged = [last.values(last.normed(stream))]  # v_L
        for layer in self.deep_layers:
            block = self.trunk.blocks[layer - 1]
            if free is None or self.deep_stream == "ordinary":
                free = cache["inputs", layer]
            free = free + block.mlp(free, norm=self.ffn_norm)  # x~_i
            merged.append(
                last.values(last.normed(free) if self.deep_norm else free.to(last.dtype))
            )  # v~_i
        total = torch.stack(merged).sum(0)
        return total / len(merged) if self.deep_merge == "mean" else total
