"""``Segmenter``: the Python door to the pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from sfp.clip import load_clip
from sfp.clip.text_bank import TextBank
from sfp.errors import SFPError
from sfp.methods import build_method
from sfp.pipeline import Pipeline, Protocol, Vocabulary
from sfp.result import Segmentation

ImageLike = str | os.PathLike | Image.Image | np.ndarray
_LONG_SIDE = 2048


class Segmenter:
    """Segments pictures by words.

        segmenter = Segmenter("SFP")
        result = segmenter("photo.jpg", ["cat", ["sofa", "couch"], "window"])
        result.overlay().save("overlay.png")

    Args:
        method: one of ``sfp.list_methods()``.
        model, pretrained, device, precision: see ``load_clip``; ``model="Toyland"`` needs no download.
        short_side: the picture's short side is resized to it before windows are cut.
        prompts, text_cache: see ``TextBank``.
        options: fields of ``Protocol`` (``window``, ``stride``, ``prob_thd`` ...) and options of the method
            (``purify``, ``pm`` ...).

    Raises:
        SFPError: unknown method, model or option.
    """

    def __init__(
        self,
        method: str = "SFP",
        model: str = "ViT-B-16",
        pretrained: Any = "openai",
        device: str | torch.device | None = None,
        *,
        precision: str | None = None,
        short_side: int = 336,
        prompts: str | Sequence[str] = "imagenet80",
        text_cache: str | os.PathLike | bool | None = None,
        **options: Any,
    ):
        if short_side < 1:
            raise SFPError(f"short_side={short_side} must be at least 1 pixel; 336 is usual.")
        in_protocol = {f.name for f in fields(Protocol)}
        protocol = Protocol(**{key: value for key, value in options.items() if key in in_protocol})
        clip = load_clip(model, pretrained, device=device, precision=precision)
        dense = build_method(method, clip, **{key: value for key, value in options.items() if key not in in_protocol})
        self.pipeline = Pipeline(dense, TextBank(clip, prompts, text_cache), protocol)
        self.short_side = short_side

    def __call__(self, image: ImageLike, names: Sequence[str | Sequence[str]]) -> Segmentation:
        """Segment one picture.

        Args:
            image: a path, a PIL image, or an (H, W, 3) uint8 RGB array.
            names: what to look for; a name may be a list of synonyms.

        Raises:
            SFPError: the image can't be read, or names are empty or stand twice.
        """
        vocabulary = Vocabulary.from_names(names)
        pixels = read_image(image)
        text = self.pipeline.embed_text(vocabulary)
        normalised = self.pipeline.method.clip.normalise(resize_short_side(pixels, self.short_side))
        ((labels, scores),) = self.pipeline([normalised], vocabulary, text, [pixels.shape[:2]], keep_probabilities=True)
        return Segmentation(labels.cpu().numpy(), vocabulary.names, scores.cpu().numpy(), pixels, self.protocol())

    def protocol(self) -> dict[str, Any]:
        """What makes a result: method, weights, prompts, sizes and thresholds."""
        method, clip = self.pipeline.method, self.pipeline.method.clip
        return {
            "method": method.name,
            "purifier": repr(method.purifier.detector) if method.purifier else None,
            "model": clip.name,
            "pretrained": clip.pretrained,
            "weights_sha256": clip.fingerprint,
            "precision": clip.precision,
            "prompts": len(self.pipeline.text_bank.prompts),
            "short_side": self.short_side,
            **self.pipeline.protocol.as_dict(),
        }


def read_image(image: ImageLike) -> np.ndarray:
    """Any picture as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Raises:
        SFPError: no such file, not a picture, or an array of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise SFPError(f"The image array is {image.shape} {image.dtype}; give (H, W, 3) uint8 in RGB order.")
        return np.ascontiguousarray(image)
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            with Image.open(path) as opened:
                return read_image(ImageOps.exif_transpose(opened))
        except FileNotFoundError as error:
            raise SFPError(f"There is no image file {path}; check the path.") from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise SFPError(f"{path} can't be read as an image ({error}); give a sound JPEG, PNG or the like.") from error
    if isinstance(image, Image.Image):
        if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: stretch to 8
            values = np.asarray(image, np.float64)
            top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
            image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
    raise SFPError(f"The image is a {type(image).__name__}; give a path, a PIL image or an (H, W, 3) uint8 array.")


def resize_short_side(pixels: np.ndarray, short_side: int) -> Tensor:
    """Bilinear to the short side, the long side at most 2048, as mmcv's ``Resize``: (3, h, w) float32 in [0, 255]."""
    height, width = pixels.shape[:2]
    factor = min(_LONG_SIDE / max(height, width), short_side / min(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    if 0 in size:
        raise SFPError(f"An image of {width}x{height} pixels is too thin to be resized to a short side of {short_side}; cut it first.")
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0].round_().clamp_(0, 255)
