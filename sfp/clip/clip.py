"""The frozen CLIP: image trunk with hooks, text encoder, and the fingerprint of their weights."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Sequence

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfp.clip.text_tower import TextTower
from sfp.clip.towers import family_of
from sfp.clip.trunk import ImageTrunk
from sfp.errors import SFPError, unknown_choice

# OpenAI's, of RGB in [0, 1]
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# float32 and so on
_PRECISION_NAMES = {str(dtype).removeprefix("torch."): name for name, dtype in PRECISIONS.items()}


class FrozenCLIP:
    """A frozen CLIP ViT. Made by ``load_clip``.

    Linear and convolution weights of the image tower are kept in ``precision``; layer norms, class
    and positional embeddings, and the whole text tower stay in float32.

    Attributes:
        name, pretrained: what it was loaded as.
        quick_gelu: whether its MLPs use ``x * sigmoid(1.702 x)``.
        pixel_mean, pixel_std: of RGB in [0, 1], three numbers each, as the weights were trained.
        trunk: the image tower, an ``ImageTrunk``.
        logit_scale: the learned temperature, exp(.) applied.
        text_tower: the text tower, a ``TextTower``.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        *,
        name: str,
        pretrained: str,
        quick_gelu: bool,
        device: torch.device,
        precision: str,
        pixel_mean: Sequence[float] = PIXEL_MEAN,
        pixel_std: Sequence[float] = PIXEL_STD,
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
        self.logit_scale = float(model.logit_scale.exp())

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def embed_dim(self) -> int:
        """D, the width of the joint image-text space."""
        return self.trunk.tower.embed_dim

    @functools.cached_property
    def tokenizer(self) -> open_clip.SimpleTokenizer:
        return open_clip.SimpleTokenizer(context_length=self.model.context_length)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (n, T) on the CPU, T the longest text's length.

        Raises:
            SFPError: a text has more tokens than the context holds, or one that stands for a text's
                start or end.
        """
        context, tokenizer = self.model.context_length, self.tokenizer
        ids = [
            torch.tensor([tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id])
            for text in texts
        ]
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > context:
                shown = f"{text[:80]} ..." if len(text) > 80 else text
                raise SFPError(
                    f"The text {shown!r} has {len(tokens) - 2} tokens, but CLIP reads "
                    f"{context - 2}; shorten the name in it."
                )
            if {tokenizer.sot_token_id, tokenizer.eot_token_id} & set(tokens[1:-1].tolist()):
                raise SFPError(
                    f"The text {text[:80]!r} has CLIP's own mark for a text's start or end; "
                    "take it out."
                )
        return nn.utils.rnn.pad_sequence(ids, batch_first=True)

    @torch.inference_mode()
    def encode_text(self, ids: Tensor) -> Tensor:
        """Text embeddings (n, D) float32, not normalised, of token ids (n, T) of ``tokenize``."""
        return self.text_tower(ids.to(self.device))

    @torch.inference_mode()
    def encode_image(self, windows: Tensor) -> Tensor:
        """Image embeddings of windows (B, 3, H, W): (B, D) float32, not normalised."""
        grid = self.trunk.grid_of(*windows.shape[-2:])
        return self.trunk.pooled(self.trunk.run(windows), grid).float()

    def normalise(self, images: Tensor) -> Tensor:
        """RGB (..., 3, H, W), uint8 or float in [0, 255], normalised to float32."""
        mean, std = (
            torch.tensor(v, device=images.device).view(3, 1, 1) * 255
            for v in (self.pixel_mean, self.pixel_std)
        )
        return (images.float() - mean) / std

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
