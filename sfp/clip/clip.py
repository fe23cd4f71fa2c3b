"""The frozen CLIP: image trunk with hooks, text encoder, and the fingerprint of their weights."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfp.clip.text_tower import TextTower
from sfp.clip.tokenizing import Tokenizer
from sfp.clip.towers import family_of
from sfp.clip.trunk import ImageTrunk
from sfp.errors import unknown_choice

# OpenAI's, of RGB in [0, 1]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# float32 and so on
_PRECISION_NAMES = {str(dtype).removeprefix("torch."): name for name, dtype in PRECISIONS.items()}


class FrozenCLIP:
    """A frozen CLIP ViT. Made by ``load_clip``.

    Linear and convolution weights of the image tower are kept in ``precision``; norms, embeddings,
    layer scales, and the whole text tower stay in float32.

    Attributes:
        name, pretrained: what it was loaded as.
        quick_gelu: whether its MLPs use ``x * sigmoid(1.702 x)``.
        pixel_mean, pixel_std: of RGB in [0, 1], three numbers each, as the weights were trained.
        trunk: the image tower, an ``ImageTrunk``.
        logit_scale: the learned temperature t, exp(.) applied.
        logit_bias: the learned bias b of a CLIP that was trained with a sigmoid (SigLIP), else
            None.
        text: the tokenizer, a ``Tokenizer``.
        text_tower: the text tower, a ``TextTower``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        pretrained: str,
        quick_gelu: bool,
        device: torch.device,
        precision: str,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
        text: Tokenizer | None = None,
    ):
        precision = _PRECISION_NAMES.get(precision, precision)
        if precision not in PRECISIONS:
            raise unknown_choice("precision", precision, PRECISIONS)
        self.name, self.pretrained, self.quick_gelu = name, pretrained, quick_gelu
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        if precision == "fp16" and device.type == "cpu":
            warnings.warn(
                "precision='fp16' is far slower than fp32 on most CPUs (docs/speed.md); "
                "bf16 is the fast one.",
                stacklevel=3,
            )
        self.precision = precision
        self.model = model.float().eval().requires_grad_(False)
        self.fingerprint = weights_sha256(model)  # of the weights as loaded, before any rounding
        family_of(model.visual).round_weights(model.visual, PRECISIONS[precision])
        self.model = model.to(device)
        self.trunk, self.text_tower = ImageTrunk(model.visual), TextTower(model)
        self.text = text or Tokenizer({"context_length": model.context_length}, name)
        self.logit_scale = float(model.logit_scale.exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def embed_dim(self) -> int:
        """D, the width of the joint image-text space."""
        return self.trunk.tower.embed_dim

    @property
    def tokenizer(self) -> Any:
        """open_clip's own tokenizer of this model."""
        return self.text.own

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (n, T) on the CPU, T the longest text's length or, where the text tower is not
        plain CLIP's, the context length.

        Raises:
            SFPError: a text has more tokens than the context holds, or one that stands for a text's
                start or end; or the tokenizer can't be had.
        """
        ids = self.text(texts)
        if self.text_tower.plain:
            return ids
        return F.pad(ids, (0, self.text.context - ids.shape[1]))

    @torch.inference_mode()
    def encode_text(self, ids: Tensor) -> Tensor:
        """Text embeddings (n, D) float32, not normalised, of token ids (n, T) of ``tokenize``."""
        return self.text_tower(ids.to(self.device))

    @torch.inference_mode()
    def encode_image(self, windows: Tensor) -> Tensor:
        """Image embeddings of windows (B, 3, H, W): (B, D) float32, not normalised."""
        grid = self.trunk.grid_of(*windows.shape[-2:])
        return self.trunk.pooled(self.trunk.run(windows), grid).float()

    def probabilities(self, images: Tensor, texts: Tensor) -> Tensor:
        """How probably each text is of each image: embeddings (B, D) and (Q, D) to (B, Q) float32.

        With a learned bias sigmoid(t cos + b), each text by itself (SigLIP); else the softmax of
        t cos over the texts.
        """
        logits = self.logit_scale * (l2_normalise(images) @ l2_normalise(texts).T)
        if self.logit_bias is None:
            return logits.softmax(-1)
        return (logits + self.logit_bias).sigmoid()

    def normalise(self, images: Tensor) -> Tensor:
        """RGB (..., 3, H, W), uint8 or float in [0, 255], normalised to float32."""
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1) * 255
            for v in (self.pixel_mean, self.pixel_std)
        )
        return (images.float() - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """RGB of normalised images (..., 3, H, W), float32; in [0, 1], but for rounding."""
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1)
            for v in (self.pixel_mean, self.pixel_std)
        )
        return images.float() * std + mean

    def pixels(self, image: Tensor) -> np.ndarray:
        """A normalised image (3, H, W) as (H, W, 3) uint8 RGB."""
        rgb = self.denormalise(image.cpu()) * 255
        return rgb.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def __repr__(self) -> str:
        trunk, activation = self.trunk, "QuickGELU" if self.quick_gelu else "GELU"
        return (
            f"FrozenCLIP({self.name!r}, {self.pretrained!r}, {trunk.layers} layers of "
            f"{trunk.width}, patch {trunk.patch}, {activation}, {self.precision} on {self.device})"
        )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of names, shapes and float32 bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def l2_normalise(vectors: Tensor) -> Tensor:
    """Rows of float32 length one; a zero row stays zero."""
    return F.normalize(vectors.float(), dim=-1)
