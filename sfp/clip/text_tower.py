"""The frozen text tower of a CLIP, float32.

Plain CLIP's runs here, on texts cut to their longest; any other (SigLIP's, XLM-R's, mT5's, CLIPA's,
CoCa's) is open_clip's own, on the whole context.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfp.clip.block import open_clip_block
from sfp.clip.kernels import attend, layer_norm, linear, require_precision


class TextTower:
    """Token ids to text embeddings. Weights are read from open_clip's model.

    Attributes:
        plain: whether it is plain CLIP's: causal, read at a text's end, which is its largest id.
        encoded: how many texts have gone through it so far.
    """

    def __init__(self, model: nn.Module):
        self.model, self.text = model, getattr(model, "text", model)
        self.plain = _is_plain(model, self.text)
        self.blocks = []
        if self.plain:
            self.blocks = [open_clip_block(own) for own in self.text.transformer.resblocks]
        self.encoded = 0

    def lengths(self, ids: Tensor) -> Tensor:
        """How many of the ids (n, T) of each text must be read, (n,)."""
        if self.plain:
            return ids.argmax(1) + 1
        return torch.full((len(ids),), ids.shape[1])

    def __call__(self, ids: Tensor) -> Tensor:
        """Embeddings (n, D), not normalised, of ids (n, T), T at most the context length.

        In plain CLIP what follows a text's end token, the largest id, changes nothing: attention is
        causal.
        """
        require_precision(next(self.text.parameters()), torch.float32)
        self.encoded += len(ids)
        if not self.plain:
            return self.model.encode_text(ids, normalize=False)
        text = self.text
        stream = text.token_embedding(ids) + text.positional_embedding[: ids.shape[1]]
        for block in self.blocks:
            stream = stream + block.project(attend(*block.qkv(block.normed(stream)), causal=True))
            stream = stream + block.mlp(stream)
        ends = stream[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return linear(layer_norm(ends, text.ln_final), text.text_projection.T)


def _is_plain(model: nn.Module, text: nn.Module) -> bool:
    pool = getattr(model, "text_pool_type", None) or getattr(text, "pool_type", None)
    return (
        pool == "argmax"
        and getattr(text, "attn_mask", None) is not None
        and getattr(text, "cls_emb", None) is None
        and isinstance(getattr(text, "text_projection", None), nn.Parameter)
    )
