"""The frozen text tower of a CLIP, float32, on texts cut to their longest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfp.clip.block import open_clip_block
from sfp.clip.kernels import attend, layer_norm, linear, require_precision


class TextTower:
    """Token ids to text embeddings. Weights are read from open_clip's model.

    Attributes:
        encoded: how many texts have gone through it so far.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.blocks = [open_clip_block(module) for module in model.transformer.resblocks]
        self.encoded = 0

    def __call__(self, ids: Tensor) -> Tensor:
        """Embeddings (n, D), not normalised, of ids (n, T), T at most the context length.

        What follows a text's end token, the largest id, changes nothing: attention is causal.
        """
        model = self.model
        require_precision(model.token_embedding.weight, torch.float32)
        stream = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
        for block in self.blocks:
            stream = stream + block.project(attend(*block.qkv(block.normed(stream)), causal=True))
            stream = stream + block.mlp(stream)
        self.encoded += len(ids)
        ends = stream[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return linear(layer_norm(ends, model.ln_final), model.text_projection.T)
