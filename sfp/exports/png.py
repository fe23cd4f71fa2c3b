"""Label maps as PNG with an index of colours, the table of their classes, and what made them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_CHUNK = "sfp"  # the text chunk of PNG files that holds the provenance as JSON


def label_image(labels: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Labels (H, W) as a picture with a palette (K, 3) uint8, or above 256 names as 16-bit grey."""
    if len(palette) > 256:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette(palette.tobytes())
    return picture


def class_table(labels: np.ndarray, names: Sequence[str], palette: np.ndarray) -> str:
    """CSV: what each index of a label image means, its colour, and its pixels."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["index", "name", "red", "green", "blue", "pixels"])
    pixels = np.bincount(labels.ravel(), minlength=len(names))
    for index, name in enumerate(names):
        table.writerow([index, name, *palette[index].tolist(), int(pixels[index])])
    return text.getvalue()


def png_provenance(provenance: dict[str, Any]) -> PngInfo:
    """PNG metadata that ``read_provenance`` reads: what made a picture, plain values as in JSON."""
    info = PngInfo()
    info.add_text(_CHUNK, json.dumps(provenance))
    return info


def read_provenance(path: str | os.PathLike) -> dict[str, Any] | None:
    """The provenance in a PNG file; None where there is no such file, or none in it."""
    try:
        with Image.open(path) as picture:
            found = json.loads(picture.info[_CHUNK])
    except Exception:  # Pillow's readers raise whatever they stumble on
        return None
    return found if isinstance(found, dict) else None
