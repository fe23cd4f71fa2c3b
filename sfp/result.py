"""The result of segmenting an image, which knows how to draw and save itself."""

from __future__ import annotations

import colorsys
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfp.datasets import toyland
from sfp.drawing import Colour, Panel, Sheet, with_legend
from sfp.errors import SFPError
from sfp.files import whole_file
from sfp.run_length import encode_mask

CARD = "sfp"  # the text chunk of PNG files that holds the protocol as JSON
_GREY: Colour = (72, 74, 80)
_SHOWN = 1024  # long side of the drawing in a notebook

_TOYLAND_COLOURS = dict(zip(toyland.CLASSES, toyland.PALETTE, strict=True))


def palette_for(names: Sequence[str], background: str = "background") -> np.ndarray:
    """A colour for each name, (K, 3) uint8: Toyland's own where all are its classes, else spread over the hues; grey for the background."""
    things = [name for name in names if name != background]
    if all(name in _TOYLAND_COLOURS for name in things):
        colours = [_TOYLAND_COLOURS[name] for name in things]
    else:
        colours = [_spread(i) for i in range(len(things))]
    of_things = iter(colours)
    return np.array([_GREY if name == background else next(of_things) for name in names], np.uint8)


def _spread(i: int) -> Colour:
    hue = (0.61 + i * 0.618034) % 1.0  # the golden ratio keeps neighbours apart
    colour = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[i % 3], (0.95, 0.75, 0.55)[(i // 3) % 3])
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


@dataclass(frozen=True)
class Pixel:
    """What a pixel shows: its ``name``, and the score of each name, best first (empty where scores weren't kept)."""

    name: str
    scores: dict[str, float]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmented image.

    Attributes:
        labels: (H, W) int64, indices into ``names``.
        names: the first word of each class; the background, if one was named, comes first.
        scores: class probabilities (K, H, W) float32, each class that of its best word, so that they sum to 1 only
            without synonyms; of a background that CLIP wasn't asked for the threshold. None if they weren't kept.
        image: the picture, (H, W, 3) uint8 RGB.
        protocol: what made it: method, weights, words, windows, thresholds; plain values as in JSON.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray | None
    image: np.ndarray
    protocol: dict[str, Any] = field(repr=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        same = (
            self.names == other.names
            and self.protocol == other.protocol
            and (self.scores is None) == (other.scores is None)
        )
        pairs = [(self.labels, other.labels), (self.image, other.image)]
        if same and self.scores is not None:
            pairs.append((self.scores, other.scores))
        return same and all(np.array_equal(ours, theirs) for ours, theirs in pairs)

    @property
    def palette(self) -> np.ndarray:
        """A colour for each name, (K, 3) uint8."""
        return palette_for(self.names, self.protocol.get("background") or "background")

    @property
    def areas(self) -> dict[str, float]:
        """Share of the image for each name that occurs, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names)) / self.labels.size
        return {
            self.names[i]: float(counts[i])
            for i in np.argsort(-counts, kind="stable")
            if counts[i] > 0
        }

    @property
    def legend(self) -> list[tuple[str, Colour]]:
        """For each name that occurs, largest first: "name 12%" and its colour."""
        colours = dict(zip(self.names, self.palette.tolist(), strict=True))
        return [
            (f"{name} {_percent(area)}", tuple(colours[name])) for name, area in self.areas.items()
        ]

    def at(self, x: float, y: float) -> Pixel:
        """Name and scores of the pixel in column x and row y, counted from the top left corner.

        Raises:
            SFPError: the pixel is outside the image.
        """
        height, width = self.labels.shape
        if not (0 <= x < width and 0 <= y < height):
            raise SFPError(
                f"There is no pixel x={x}, y={y} in an image of {width}x{height}; x goes from 0 to {width - 1}, y to {height - 1}."
            )
        row, column = int(y), int(x)
        name = self.names[self.labels[row, column]]
        if self.scores is None:
            return Pixel(name, {})
        here = self.scores[:, row, column]
        return Pixel(
            name, {self.names[i]: float(here[i]) for i in np.argsort(-here, kind="stable")}
        )

    def overlay(self, alpha: float = 0.55, legend: bool = True) -> Image.Image:
        """The picture under its label colours, with a legend of the names that occur and their areas."""
        blend = Image.blend(
            Image.fromarray(self.image), Image.fromarray(self.palette[self.labels]), alpha
        )
        return with_legend(blend, self.legend) if legend else blend

    def label_image(self) -> Image.Image:
        """Labels as a palette PNG (up to 256 names) or 16-bit grey."""
        if len(self.names) > 256:
            return Image.fromarray(self.labels.astype(np.uint16))
        picture = Image.fromarray(self.labels.astype(np.uint8), "P")
        picture.putpalette(
            np.concatenate([self.palette, np.zeros((256 - len(self.names), 3), np.uint8)])
            .ravel()
            .tolist()
        )
        return picture

    def coco(self) -> dict[str, Any]:
        """The result in COCO's layout, ready for JSON: one annotation for each name that occurs.

        Its ``segmentation`` is a compressed run-length mask, {"size": [H, W], "counts": text}, that pycocotools reads;
        ``area`` is in pixels, ``bbox`` is [x, y, width, height], ``category_id`` the label.
        """
        height, width = self.labels.shape
        annotations = []
        for label in np.unique(self.labels).tolist():
            mask = self.labels == label
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            left, top = int(columns[0]), int(rows[0])
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": label,
                "segmentation": {"size": [height, width], "counts": encode_mask(mask)},
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "iscrowd": 0,
            })  # fmt: skip
        return {
            "info": {"description": "made by sfp", "protocol": self.protocol},
            "images": [{"id": 1, "width": width, "height": height}],
            "categories": [{"id": label, "name": name} for label, name in enumerate(self.names)],
            "annotations": annotations,
        }

    def save(self, path: str | os.PathLike) -> Path:
        """Write it, in the form that the ending names.

        ``.png``: labels, see ``label_image``, with the protocol as JSON in the text chunk "sfp". ``.jpg``: the overlay.
        ``.json``: names, masks and protocol in COCO's layout, see ``coco``. ``.npz``: everything; ``load`` gives it back.

        Raises:
            SFPError: another ending, or the file can't be written.
        """
        path = Path(path)
        endings = (".png", ".jpg", ".jpeg", ".json", ".npz")
        ending = path.suffix.lower()
        if ending not in endings:
            raise SFPError(
                f"{path} ends in {path.suffix!r}; use .png for labels, .jpg for the overlay, .json for COCO masks or .npz for everything."
            )
        with whole_file(path) as partial:
            if ending == ".png":
                self.label_image().save(partial, pnginfo=png_card(self.protocol))
            elif ending == ".json":
                partial.write_text(json.dumps(self.coco()), encoding="utf-8")
            elif ending == ".npz":
                small = np.min_scalar_type(len(self.names))
                kept = {} if self.scores is None else {"scores": self.scores}
                texts = dict(
                    names=np.array(self.names), protocol=np.array(json.dumps(self.protocol))
                )
                np.savez_compressed(
                    partial, labels=self.labels.astype(small), image=self.image, **texts, **kept
                )
            else:
                self.overlay().save(partial, quality=92)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Segmentation:
        """The result that ``save`` wrote as ``.npz``: equal to what it was, picture and protocol included.

        Raises:
            SFPError: no such file, or not one of these.
        """
        try:
            with np.load(path, allow_pickle=False) as saved:
                result = cls(
                    labels=saved["labels"].astype(np.int64),
                    names=tuple(saved["names"].tolist()),
                    scores=saved.get("scores"),
                    image=saved["image"],
                    protocol=json.loads(str(saved["protocol"])),
                )
                result._require_sound()
                return result
        except FileNotFoundError as error:
            raise SFPError(f"There is no result file {path}; check the path.") from error
        except Exception as error:  # of a broken archive, any
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            reason = (
                "it is no .npz file" if "pickle" in reason else reason
            )  # NumPy advises to run what is in it
            raise SFPError(
                f"{path} is not a whole result of this package ({reason}); load a .npz file that save() wrote."
            ) from error

    def _require_sound(self) -> None:
        """Raises ValueError where the parts don't fit each other."""
        count, size = len(self.names), self.labels.shape
        if (
            not count
            or not all(isinstance(name, str) for name in self.names)
            or not isinstance(self.protocol, dict)
        ):
            raise ValueError("its names are no texts, or its protocol is no mapping")
        if len(size) != 2 or not self.labels.size:
            raise ValueError(f"its labels have the shape {size}")
        if self.labels.min() < 0 or self.labels.max() >= count:
            raise ValueError(
                f"it has labels from {self.labels.min()} to {self.labels.max()}, but {count} names"
            )
        if self.image.shape != (*size, 3) or self.image.dtype != np.uint8:
            raise ValueError(
                f"its image is {self.image.shape} {self.image.dtype}, its labels {size}"
            )
        if self.scores is not None and (
            self.scores.shape != (count, *size) or self.scores.dtype != np.float32
        ):
            raise ValueError(f"its scores are {self.scores.shape} {self.scores.dtype}")

    def show(self) -> None:
        """Open the overlay in the desktop's picture viewer."""
        self.overlay().show()

    def _repr_png_(self) -> bytes:
        drawn = self.overlay()
        drawn.thumbnail((_SHOWN, _SHOWN))
        return png_bytes(drawn)


def compare(results: dict[str, Segmentation], height: int = 240) -> Image.Image:
    """A strip as in papers' figures: the picture, then each result under its title, with one legend for all.

    Args:
        results: by title, all of one picture.
        height: of each picture in pixels.

    Raises:
        SFPError: there is none.
    """
    results = dict(results)
    if not results:
        raise SFPError("There is no result to compare; give at least one, by its title.")
    first = next(iter(results.values()))
    colours = {
        name: tuple(c)
        for result in results.values()
        for name, c in zip(result.names, result.palette.tolist(), strict=True)
    }
    seen = dict.fromkeys(name for result in results.values() for name in result.areas)
    panels = [
        Panel(Image.fromarray(first.image)),
        *(Panel(result.overlay(legend=False)) for result in results.values()),
    ]
    return Sheet(
        [panels],
        ["image", *results],
        legend=[(name, colours[name]) for name in seen],
        height=height,
    ).draw()


def png_card(card: dict[str, Any]) -> PngInfo:
    """PNG metadata that holds a card; ``read_card`` reads it."""
    info = PngInfo()
    info.add_text(CARD, json.dumps(card))
    return info


def read_card(path: str | os.PathLike) -> dict[str, Any] | None:
    """The card in a PNG file; None where there is no such file, or none in it."""
    try:
        with Image.open(path) as picture:
            card = json.loads(picture.info[CARD])
    except Exception:  # Pillow's readers raise whatever they stumble on
        return None
    return card if isinstance(card, dict) else None


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _percent(area: float) -> str:
    return f"{100 * area:.0f}%" if area >= 0.005 else "<1%"
