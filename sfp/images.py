"""Pictures of every kind as (H, W, 3) uint8 RGB, and their resizing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sfp.errors import SFPError, refuse_want_of_memory
from sfp.options import check_type


@runtime_checkable
class StoredImage(Protocol):
    """A picture that is read when it is asked for: in an archive, a video, a table (see
    ``sfp.many``).

    Attributes:
        path: of its file, "" where it has none of its own.
    """

    path: str

    def read_pixels(self) -> np.ndarray:
        """The picture as (H, W, 3) uint8 RGB.

        Raises:
            SFPError: it can't be read.
        """


ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | Tensor | StoredImage
_LONG_SIDE = 2048
_ARRAYS = "(H, W, 3), (H, W, 4) or (H, W) uint8 with RGB order"
_TENSORS = "(3, H, W) uint8, or float in [0, 1]"


def read_image(image: ImageLike) -> np.ndarray:
    """Any picture as (H, W, 3) uint8 RGB.

    Files and PIL images are turned as their EXIF orientation says; transparent pixels lie on white;
    of 16-bit grey the full range becomes 0..255; of an animation the first frame is taken.

    Args:
        image: a path; a PIL image; an array (H, W, 3), RGBA (H, W, 4) or grey (H, W), uint8; or a
            tensor (C, H, W) with 3, 4 or 1 channels, uint8 or float in [0, 1]; or a
            ``StoredImage``.

    Raises:
        SFPError: no such file, not a picture, or an array or tensor of another shape or type.
    """
    if isinstance(image, StoredImage):
        return image.read_pixels()
    if isinstance(image, Tensor):
        return _from_pil(_from_array(_planes(image)))
    if isinstance(image, np.ndarray):
        return _from_pil(_from_array(image))
    if isinstance(image, Image.Image):
        try:
            return _from_pil(image)
        except Exception as error:  # Pillow's readers raise whatever they stumble on
            raise _unreadable("The PIL image", error) from error
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        try:
            with Image.open(path) as opened:
                return _from_pil(opened)
        except FileNotFoundError as error:
            raise SFPError(f"There is no image file {image}; check the path.") from error
        except Exception as error:
            raise _unreadable(str(image) or "The empty path", error) from error
    kinds = f"a path, a PIL image, an array {_ARRAYS}, or a tensor {_TENSORS}"
    raise SFPError(f"The image is a {type(image).__name__}; give {kinds}.")


def decode_image(data: bytes, name: str) -> np.ndarray:
    """A picture's file in memory as ``read_image`` gives it.

    Args:
        name: where it comes from, for the error.

    Raises:
        SFPError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return _from_pil(opened)
    except Exception as error:  # as above
        raise _unreadable(name, error) from error


def _unreadable(what: str, error: Exception) -> SFPError:
    refuse_want_of_memory(error, f"reading {what}")
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return SFPError(
        f"{what} can't be read as an image ({reason[:200]}); give a sound JPEG, PNG or the like."
    )


def _planes(image: Tensor) -> np.ndarray:
    """A tensor (C, H, W) as an array (H, W, C) uint8."""
    shown = f"The image tensor is {tuple(image.shape)} {str(image.dtype).removeprefix('torch.')}"
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise SFPError(f"{shown}; give one image as {_TENSORS}.")
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()
        if image.numel() and not bool(((image >= 0) & (image <= 1)).all()):  # NaN fails too
            finite = bool(torch.isfinite(image).all())
            found = f"values from {image.min():.3g} to {image.max():.3g}"
            found = found if finite else "NaN or infinite values"
            raise SFPError(f"{shown} with {found}; floats must lie in [0, 1], not normalised.")
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise SFPError(f"{shown}; give {_TENSORS}.")
    return image.permute(1, 2, 0).numpy()


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    good = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if not good or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise SFPError(f"The image array is {pixels.shape} {pixels.dtype}; give {_ARRAYS}.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _from_pil(image: Image.Image) -> np.ndarray:
    """Raises ValueError, or what Pillow raises, for a picture that can't be read."""
    if image.format == "EPS":
        raise ValueError("it is a program in PostScript, which is never run")
    if 0 in image.size:
        raise ValueError(f"it has {image.width}x{image.height} pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more: stretch to 8
        values = np.asarray(image, np.float32)
        if not np.isfinite(values).all():
            raise ValueError("it has NaN or infinite pixels")
        if values.min() < 0 or (image.mode != "F" and values.max() > 65535):
            raise ValueError(f"it has grey from {values.min():g} to {values.max():g}")
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def resized_size(height: int, width: int, short_side: int, patch: int = 1) -> tuple[int, int]:
    """(h, w) with that short side, the long side at most 2048, as mmcv's ``Resize`` rounds it.

    Raises:
        SFPError: ``short_side`` is no number of pixels, or the picture is so thin that its short
            side becomes smaller than ``patch``.
    """
    check_type("short_side", short_side, int, 336)
    if short_side < 1:
        raise SFPError(f"short_side={short_side} must be at least 1 pixel; 336 is usual.")
    factor = min(_LONG_SIDE / max(height, width), short_side / min(height, width))
    size = (int(height * factor + 0.5), int(width * factor + 0.5))
    if min(size) < patch:
        least = f", less than one patch of {patch}" if patch > 1 else ""
        raise SFPError(
            f"An image of {width}x{height} pixels is too small or too thin: resized to a short "
            f"side of {short_side} and a long side of at most {_LONG_SIDE} it has "
            f"{size[1]}x{size[0]}{least}; cut it or set another short_side."
        )
    return size


def resize_short_side(pixels: np.ndarray, short_side: int, patch: int = 1) -> Tensor:
    """Bilinear to ``resized_size``: (H, W, 3) uint8 to (3, h, w) float32 in [0, 255]."""
    size = resized_size(*pixels.shape[:2], short_side, patch)
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0]
    return resized.round_().clamp_(0, 255)
