"""The result of segmenting an image, which knows how to draw and save itself."""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sfp import drawing
from sfp.drawing import Colour
from sfp.errors import SFPError, refuse_want_of_memory
from sfp.exports.coco import coco_dataset
from sfp.exports.instances import Annotated, find_instances
from sfp.exports.png import class_table, label_image, png_provenance
from sfp.files import make_folder, whole_file

if TYPE_CHECKING:
    import supervision

_GREY: Colour = (72, 74, 80)
_LISTED = 6  # names in the one line of a result
_SHOWN = 1024  # long side of the drawing in a notebook


def palette_for(names: Sequence[str], background: str = "background") -> np.ndarray:
    """A colour for each name, (K, 3) uint8: grey for the background, else by the name's place."""
    places = iter(range(len(names)))
    return np.array([_GREY if n == background else _colour(next(places)) for n in names], np.uint8)


def _colour(place: int) -> Colour:
    """Hues by the golden ratio, which keeps neighbours apart, in nine shades."""
    hue = (0.61 + place * 0.618034) % 1.0
    saturation, value = (0.85, 0.55, 0.7)[place % 3], (0.95, 0.75, 0.55)[place // 3 % 3]
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))


@dataclass(frozen=True)
class Pixel:
    """A pixel's ``name``, and each name's score, best first.

    Where only the labels' scores were kept, that of its name; empty where none were.
    """

    name: str
    scores: dict[str, float]


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """A segmented image.

    >>> import numpy as np
    >>> labels, image = np.array([[0, 1, 1, 1]]), np.zeros((1, 4, 3), np.uint8)
    >>> Segmentation(labels, ("sky", "sea"), None, image, {}).areas
    {'sea': 0.75, 'sky': 0.25}
    >>> print(Segmentation(labels, ("sky", "sea"), None, image, {}))
    Segmentation of 4x1 pixels: sea 75%, sky 25%

    Attributes:
        labels: (H, W) int64, indices into ``names``.
        names: the first word of each class; the background, if one was named, comes first.
        scores: class probabilities (K, H, W) float32, or None if they weren't kept. Each class has
            that of its best word, so they sum to 1 only without synonyms; a background that CLIP
            wasn't asked for has the threshold.
        image: the picture, (H, W, 3) uint8 RGB.
        protocol: method, weights, words, windows, thresholds that made it; plain values as in JSON.
        confidence: the probability of each pixel's own name, (H, W) float32; that of the scores
            where they are kept, else as given, or None.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray | None
    image: np.ndarray
    protocol: dict[str, Any]
    confidence: np.ndarray | None = None

    def __post_init__(self):
        if self.confidence is None and self.scores is not None:
            own = np.take_along_axis(self.scores, self.labels[None], 0)[0]
            object.__setattr__(self, "confidence", own)

    def __repr__(self) -> str:
        height, width = self.labels.shape
        shares = [text for text, _ in self.legend]
        more = f" and {len(shares) - _LISTED} more" if len(shares) > _LISTED else ""
        by = ", ".join(
            str(self.protocol[key]) for key in ("method", "model") if key in self.protocol
        )
        return (
            f"Segmentation of {width}x{height} pixels: {', '.join(shares[:_LISTED])}{more}"
            f"{by and f' ({by})'}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        arrays = ("labels", "image", "scores", "confidence")
        return (
            self.names == other.names
            and self.protocol == other.protocol
            and all(np.array_equal(getattr(self, each), getattr(other, each)) for each in arrays)
        )

    @property
    def palette(self) -> np.ndarray:
        """A colour for each name, (K, 3) uint8."""
        return palette_for(self.names, self.protocol.get("background") or "background")

    @property
    def background(self) -> str | None:
        """The name of what none of the names fits, which is label 0; None where there is none."""
        named = self.protocol.get("background")
        return self.names[0] if named or self.names[0].lower() == "background" else None

    @property
    def areas(self) -> dict[str, float]:
        """Share of the image for each name that occurs, largest first."""
        shares = np.bincount(self.labels.ravel(), minlength=len(self.names)) / self.labels.size
        order = np.argsort(-shares, kind="stable")
        return {self.names[i]: float(shares[i]) for i in order if shares[i] > 0}

    @property
    def legend(self) -> list[tuple[str, Colour]]:
        """For each name that occurs, largest first: "name 12%" and its colour."""
        colours = dict(zip(self.names, map(tuple, self.palette.tolist()), strict=True))
        return [
            (f"{name} {100 * area:.0f}%" if area >= 0.005 else f"{name} <1%", colours[name])
            for name, area in self.areas.items()
        ]

    def at(self, x: float, y: float) -> Pixel:
        """Name and scores of the pixel in column x and row y, counted from the top left corner.

        Raises:
            SFPError: the pixel is outside the image.
        """
        height, width = self.labels.shape
        if not (0 <= x < width and 0 <= y < height):
            raise SFPError(
                f"There is no pixel x={x}, y={y} in an image of {width}x{height}; x goes from 0 to "
                f"{width - 1}, y to {height - 1}."
            )
        row, column = int(y), int(x)
        name = self.names[self.labels[row, column]]
        if self.scores is None:
            known = self.confidence is not None
            return Pixel(name, {name: float(self.confidence[row, column])} if known else {})
        scores = self.scores[:, row, column]
        order = np.argsort(-scores, kind="stable")
        return Pixel(name, {self.names[i]: float(scores[i]) for i in order})

    def overlay(self, alpha: float = 0.55, legend: bool = True) -> Image.Image:
        """The picture under its label colours, with a legend of the names that occur below it."""
        colours = Image.fromarray(self.palette[self.labels])
        blend = Image.blend(Image.fromarray(self.image), colours, alpha)
        return drawing.with_legend(blend, self.legend) if legend else blend

    def label_image(self) -> Image.Image:
        """Labels as a palette PNG (up to 256 names) or 16-bit grey."""
        return label_image(self.labels, self.palette)

    def annotated(self, file_name: str = "", *, parts: bool = False) -> Annotated:
        """The result as ``sfp.exports`` takes it: an instance for each name that occurs.

        Args:
            file_name: of the picture, as another tool will look for it.
            parts: an instance for each connected part of a name instead.
        """
        background = self.background is not None
        found = find_instances(self.labels, self.confidence, background=background, parts=parts)
        return Annotated(file_name, self.labels.shape, self.names, background, self.palette, found)

    def to_coco(self, file_name: str = "", *, parts: bool = False) -> dict[str, Any]:
        """The result in COCO's layout, ready for JSON, see ``sfp.exports.coco.coco_dataset``.

        Args:
            file_name, parts: see ``annotated``.
        """
        return coco_dataset([self.annotated(file_name, parts=parts)], self.protocol)

    def to_supervision(self, *, parts: bool = False) -> supervision.Detections:
        """The result as ``supervision.Detections``; ``class_id`` is the label, the background is
        left out.

        Args:
            parts: see ``annotated``.

        Raises:
            SFPError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise SFPError(
                f"supervision can't be imported ({error}); pip install supervision."
            ) from error
        picture = self.annotated(parts=parts)
        found = picture.instances
        if not found:
            return supervision.Detections.empty()
        corners = np.array([each.box for each in found], np.float32)
        corners[:, 2:] += corners[:, :2]
        known = self.confidence is not None
        return supervision.Detections(
            xyxy=corners,
            mask=np.stack([each.whole_mask(picture.size) for each in found]),
            confidence=np.array([each.score for each in found], np.float32) if known else None,
            class_id=np.array([each.label for each in found]),
            data={"class_name": np.array([self.names[each.label] for each in found])},
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write it, in the form that the ending names; missing folders are made.

        ``.png``: labels, see ``label_image``, with the protocol as JSON in the text chunk "sfp",
        and beside it, as ``.csv``, the names and colours of the labels.
        ``.jpg``: the overlay. ``.json``: names, masks and protocol in COCO's layout, see
        ``to_coco``. ``.npz``: everything; ``load`` gives it back.

        Raises:
            SFPError: another ending, or the file can't be written.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (".png", ".jpg", ".jpeg", ".json", ".npz"):
            raise SFPError(
                f"{path} ends in {path.suffix!r}; use .png for labels, .jpg for the overlay, .json "
                "for COCO masks or .npz for everything."
            )
        make_folder(path.parent)
        table = whole_file(path.with_suffix(".csv")) if ending == ".png" else nullcontext()
        with whole_file(path) as partial, table as beside:
            if ending == ".png":
                names = class_table(self.labels, self.names, self.palette)
                beside.write_text(names, encoding="utf-8")
                self.label_image().save(partial, pnginfo=png_provenance(self.protocol))
            elif ending == ".json":
                partial.write_text(json.dumps(self.to_coco()), encoding="utf-8")
            elif ending == ".npz":
                np.savez_compressed(
                    partial,
                    labels=self.labels.astype(np.min_scalar_type(len(self.names))),
                    image=self.image,
                    names=np.array(self.names),
                    protocol=np.array(json.dumps(self.protocol)),
                    **{
                        key: value
                        for key in ("scores", "confidence")
                        if (value := getattr(self, key)) is not None
                    },
                )
            else:
                self.overlay().save(partial, quality=92)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Segmentation:
        """The result that ``save`` wrote as ``.npz``, equal to what it was.

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
                    confidence=saved.get("confidence"),
                )
                result._require_sound()
                return result
        except FileNotFoundError as error:
            raise SFPError(f"There is no result file {path}; check the path.") from error
        except Exception as error:  # of a broken archive, any
            refuse_want_of_memory(error, f"reading {path}")
            reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
            if "pickle" in reason:  # NumPy's advice would be to run what is in it
                reason = "it is no .npz file"
            raise SFPError(
                f"{path} is not a whole result of this package ({reason}); load a .npz file that "
                "save() wrote."
            ) from error

    def _require_sound(self) -> None:
        """Raises ValueError where the parts don't fit each other."""
        count, size = len(self.names), self.labels.shape
        if not count or not all(isinstance(name, str) for name in self.names):
            raise ValueError("its names are no texts")
        if not isinstance(self.protocol, dict):
            raise ValueError("its protocol is no mapping")
        if len(size) != 2 or not self.labels.size:
            raise ValueError(f"its labels have the shape {size}")
        least, most = self.labels.min(), self.labels.max()
        if least < 0 or most >= count:
            raise ValueError(f"it has labels from {least} to {most}, but {count} names")
        expected = [("image", self.image, (*size, 3), np.uint8)]
        if self.scores is not None:
            expected.append(("scores", self.scores, (count, *size), np.float32))
        if self.confidence is not None:
            expected.append(("confidence", self.confidence, size, np.float32))
        for part, array, shape, dtype in expected:
            if array.shape != shape or array.dtype != dtype:
                found = f"{array.shape} {array.dtype}"
                raise ValueError(f"its {part} is {found}, its labels {size}, its names {count}")

    def show(self) -> None:
        """Open the overlay in the desktop's picture viewer."""
        self.overlay().show()

    def _repr_png_(self) -> bytes:
        drawn = self.overlay()
        drawn.thumbnail((_SHOWN, _SHOWN))
        return drawing.png_bytes(drawn)


def compare(results: dict[str, Segmentation], height: int = 240) -> Image.Image:
    """A strip: the picture, then each result under its title, with one legend for all.

    Args:
        results: by title, all of one picture.
        height: of each picture in pixels.

    Raises:
        SFPError: there is none.
    """
    if not results:
        raise SFPError("There is no result to compare; give at least one, by its title.")
    first = next(iter(results.values()))
    pictures = {"image": first.image}
    legend: dict[str, Colour] = {}
    for title, result in results.items():
        pictures[title] = np.asarray(result.overlay(legend=False))
        colours = dict(zip(result.names, result.palette.tolist(), strict=True))
        legend |= {name: colours[name] for name in result.areas if name not in legend}
    return drawing.sheet([list(pictures.items())], list(legend.items()), height)
