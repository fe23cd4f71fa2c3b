"""The result of segmenting an image, which knows how to draw and save itself."""

from __future__ import annotations

import colorsys
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sfp.datasets import toyland
from sfp.errors import SFPError

_TOYLAND_COLOURS = dict(zip(toyland.CLASSES, toyland.PALETTE, strict=True))


def palette_for(names: tuple[str, ...] | list[str]) -> np.ndarray:
    """A colour for each name, (K, 3) uint8: Toyland's own where all names are its classes, else spread over the hues."""
    if all(name in _TOYLAND_COLOURS for name in names):
        return np.array([_TOYLAND_COLOURS[name] for name in names], np.uint8)
    colours = []
    for i in range(len(names)):
        hue = (0.61 + i * 0.618034) % 1.0  # the golden ratio keeps neighbours apart
        colours.append(colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[i % 3], (0.95, 0.75, 0.55)[(i // 3) % 3]))
    return (np.array(colours) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Segmentation:
    """A segmented image.

    Attributes:
        labels: (H, W) int64, indices into ``names``.
        names: the first word of each class.
        scores: class probabilities (K, H, W) float32.
        image: the picture, (H, W, 3) uint8 RGB.
        protocol: what made it: method, weights, windows, thresholds.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    image: np.ndarray
    protocol: dict[str, Any] = field(repr=False)

    @property
    def palette(self) -> np.ndarray:
        """A colour for each name, (K, 3) uint8."""
        return palette_for(self.names)

    @property
    def areas(self) -> dict[str, float]:
        """Share of the image for each name that occurs, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names)) / self.labels.size
        return {self.names[i]: float(counts[i]) for i in np.argsort(-counts) if counts[i] > 0}

    def overlay(self, alpha: float = 0.55, legend: bool = True) -> Image.Image:
        """The picture under its label colours, with a legend of the names that occur and their areas."""
        blend = self.image * (1 - alpha) + self.palette[self.labels] * alpha
        picture = Image.fromarray(blend.round().astype(np.uint8))
        return _with_legend(picture, self.areas, dict(zip(self.names, self.palette, strict=True))) if legend else picture

    def label_image(self) -> Image.Image:
        """Labels as a palette PNG (up to 256 names) or 16-bit grey."""
        if len(self.names) > 256:
            return Image.fromarray(self.labels.astype(np.uint16))
        picture = Image.fromarray(self.labels.astype(np.uint8), "P")
        picture.putpalette(np.concatenate([self.palette, np.zeros((256 - len(self.names), 3), np.uint8)]).ravel().tolist())
        return picture

    def save(self, path: str | os.PathLike) -> Path:
        """Write labels (``.png``), or the overlay (``.jpg``), or labels, scores and names (``.npz``).

        Raises:
            SFPError: another ending, or the file can't be written.
        """
        path = Path(path)
        try:
            if path.suffix == ".png":
                self.label_image().save(path)
            elif path.suffix in (".jpg", ".jpeg"):
                self.overlay().save(path, quality=92)
            elif path.suffix == ".npz":
                np.savez_compressed(path, labels=self.labels, scores=self.scores, names=np.array(self.names))
            else:
                raise SFPError(f"{path} ends in {path.suffix!r}; use .png for labels, .jpg for the overlay or .npz for everything.")
        except OSError as error:
            raise SFPError(f"{path} can't be written ({error}); choose a folder that exists and can be written.") from error
        return path

    def show(self) -> None:
        """Open the overlay in the desktop's picture viewer."""
        self.overlay().show()

    def _repr_png_(self) -> bytes:
        return self.overlay()._repr_png_()


def _with_legend(picture: Image.Image, areas: dict[str, float], colours: dict[str, np.ndarray]) -> Image.Image:
    """A strip below the picture: a swatch, the name and the area of each class, in rows."""
    size = max(11, picture.width // 40)
    draw = ImageDraw.Draw(picture)
    entries = [(name, f"{name} {100 * area:.0f}%" if area >= 0.005 else f"{name} <1%") for name, area in areas.items()]
    widths = [int(draw.textlength(text, font_size=size)) + 2 * size + size for _, text in entries]
    rows, x = [[]], 0
    for entry, width in zip(entries, widths, strict=True):
        if x + width > picture.width and rows[-1]:
            rows.append([])
            x = 0
        rows[-1].append((x, entry))
        x += width
    line = round(size * 1.7)
    sheet = Image.new("RGB", (picture.width, picture.height + line * len(rows) + size // 2), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = picture.height + i * line + size // 2
        for x, (name, text) in row:
            draw.rectangle(
                (x + size // 2, top, x + size // 2 + size, top + size), fill=tuple(int(c) for c in colours[name]), outline="black"
            )
            draw.text((x + 2 * size, top + size / 2), text, fill="black", font_size=size, anchor="lm")
    return sheet
