"""What the page computes, without its widgets: a bounded number of pictures, models and results."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfp import Inspection, Segmentation, Segmenter, SFPError, list_detectors, load_clip
from sfp.datasets import toyland
from sfp.errors import refuse_want_of_memory, unknown_choice
from sfp.images import read_image
from sfp.names import (
    BACKGROUND,
    check_names,
    parse_names,
    read_names,
    shipped_lists,
    usual_background,
)
from sfp.refiners import list_refiners

AS_PUBLISHED, OFF, NONE = "as published", "off", "none"
MAX_FILE_BYTES = 20 << 20
MAX_WORDS, MAX_WORD_LENGTH, MAX_NAMES_LENGTH = 500, 60, 10_000
_MOST_SCORES = 40  # names; above it a picture's scores of all names would take hundreds of MiB
_RESULTS = 8  # whose files are kept to be downloaded
_MAX_PIXELS = 50_000_000
_MAX_ASPECT = 4
_LONG_SIDE = 1024  # of the pictures that are kept: the models take a short side of 336
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SCENES = (10, 0, 3, 6, 4, 2)
_FIRST_NAMES = "sky; sea, ocean; sand; sun; boat; house"
# what has no other default: ProxyCLIP's is a download, FLOSS's ranking is of Toyland's words
TOYLAND_OPTIONS = {
    "ProxyCLIP": {"proxy": "colour"},
    "FSA": {"base": "ProxyCLIP:proxy=colour"},
    "FLOSS": {"ranking": str(Path(toyland.__file__).with_name("toyland_prompts.json"))},
}


@dataclass(frozen=True)
class Backbone:
    """A CLIP that can be chosen: arguments of ``load_clip`` under a title."""

    title: str
    model: str
    pretrained: str = "openai"
    options: Mapping[str, Any] = field(default_factory=dict)


BACKBONES = (
    Backbone("Toyland (built in)", "Toyland"),
    Backbone("Toyland-clean (built in, without outliers)", "Toyland-clean"),
    Backbone("ViT-B/16, OpenAI", "ViT-B/16"),
    Backbone("ViT-B/32, OpenAI", "ViT-B/32"),
    Backbone("ViT-L/14, OpenAI", "ViT-L/14"),
    Backbone("ViT-B/16, LAION-400M", "ViT-B-16", "laion400m_e32"),
    Backbone("ViT-B/16, MetaCLIP", "ViT-B/16", "metaclip_400m"),
)


@dataclass(frozen=True)
class Settings:
    """What a visitor chose.

    Attributes:
        method: a name of ``list_methods()``.
        purification: ``AS_PUBLISHED``, ``OFF`` or the name of a detector.
        backbone: a ``Backbone``'s title.
        refinement: ``NONE`` or the name of a refiner.
        every_layer: purify after every layer, not only where the method does.
    """

    method: str
    purification: str
    backbone: str
    refinement: str = NONE
    every_layer: bool = False


@dataclass(frozen=True)
class Around:
    """What becomes of pixels that are none of the names.

    Attributes:
        background: ask for usual stuff, too, where there are few names.
        least: probability below which a pixel is background.
    """

    background: bool = True
    least: float = 0.0


@dataclass(frozen=True)
class Example:
    """A picture's file, and names to look for in it."""

    file: Path
    names: str


class Backend:
    """Segments and inspects pictures for all visitors.

    Kept at any time: the last 32 pictures, 2 backbones with 4 segmenters each, 4 segmentations
    and 2 inspections. Not for several threads at once.

    Args:
        folder: where the examples and the cache of text vectors are written.
        backbones: what can be chosen.
    """

    def __init__(self, folder: Path, backbones: Sequence[Backbone] = BACKBONES):
        self.backbones = {backbone.title: backbone for backbone in backbones}
        self.examples = _draw_examples(folder)
        self._text_cache = folder / "text"
        self._results = folder / "results"
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()
        self._files: OrderedDict[str, list[Path]] = OrderedDict()
        self._cartoons = {self.add_picture(example.file) for example in self.examples}
        self.load = functools.lru_cache(maxsize=2)(self._load)
        self.segmentation = functools.lru_cache(maxsize=4)(self._segmentation)
        self.inspection = functools.lru_cache(maxsize=2)(self._inspection)

    def add_picture(self, file: Path) -> str:
        """Keep a picture, reduced to a long side of 1024; returns the key that ``picture`` takes.

        Raises:
            SFPError: not a picture, too many pixels, or over four times as long as it is wide.
        """
        try:
            with Image.open(file, formats=_FORMATS) as opened:
                width, height = opened.size
                pixels = read_image(opened) if width * height <= _MAX_PIXELS else None
        except Exception as error:  # Pillow's readers raise errors of all kinds
            refuse_want_of_memory(error, f"reading {file.name}")
            raise SFPError(
                f"{file.name} can't be read as a picture; "
                f"give a sound {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}."
            ) from error
        size = f"{file.name} has {width}x{height} pixels"
        if pixels is None:
            raise SFPError(
                f"{size}; the page takes {_MAX_PIXELS // 10**6} million, so make it smaller."
            )
        if max(width, height) > _MAX_ASPECT * min(width, height):
            raise SFPError(
                f"{size}, too long and thin for the page; cut it to at most {_MAX_ASPECT}:1."
            )
        reduced = Image.fromarray(pixels)
        reduced.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
        pixels = np.array(reduced)
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        self._pictures[key] = pixels
        self._pictures.move_to_end(key)
        if len(self._pictures) > 32:
            self._pictures.popitem(last=False)
        return key

    def picture(self, key: str | None) -> np.ndarray:
        """A kept picture, (H, W, 3) uint8.

        Raises:
            SFPError: none was chosen, or it is no longer kept.
        """
        if key is None:
            raise SFPError("There is no picture yet; upload one or choose an example.")
        if key not in self._pictures:
            raise SFPError("This picture is no longer kept; upload it again, or choose an example.")
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def segmenter(self, settings: Settings) -> Segmenter:
        """The segmenter of these settings, made if it isn't kept.

        Raises:
            SFPError: an unknown choice, or weights that can't be had.
        """
        if settings.backbone not in self.backbones:
            raise unknown_choice("backbone", settings.backbone, self.backbones)
        make = self.load(settings.backbone)
        return make(
            settings.method, settings.purification, settings.refinement, settings.every_layer
        )

    def is_out_of_place(self, picture: str | None, settings: Settings) -> bool:
        """Whether a picture that is none of Toyland's meets Toyland's CLIP."""
        backbone = self.backbones.get(settings.backbone)
        known = picture in self._cartoons
        return backbone is not None and backbone.model.startswith("Toyland") and not known

    def repair(self, settings: Settings) -> str:
        """What a method of these settings does about outliers, in words.

        Raises:
            SFPError: see ``segmenter``.
        """
        purifier = self.segmenter(settings).pipeline.method.purifier
        if purifier is None:
            return "no outlier repaired"
        layers = sorted(purifier.layers)
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
        if layers and layers != list(range(layers[0], layers[-1] + 1)):
            where = f"layers {', '.join(map(str, layers))}"
        return f"outliers repaired by {purifier.detector.name} after {where}"

    def computed(self) -> int:
        """How many answers were computed so far, and not taken from the cache."""
        return self.segmentation.cache_info().misses + self.inspection.cache_info().misses

    def files(self, result: Segmentation) -> list[Path]:
        """A result as files to download: labels as PNG, masks as COCO's JSON."""
        key = hashlib.sha256(result.labels.tobytes() + repr(result.protocol).encode()).hexdigest()
        if key not in self._files:
            folder = self._results / key[:16]
            self._files[key] = [result.save(folder / name) for name in ("labels.png", "coco.json")]
            if len(self._files) > _RESULTS:
                _, old = self._files.popitem(last=False)
                shutil.rmtree(old[0].parent, ignore_errors=True)
        self._files.move_to_end(key)
        return self._files[key]

    def _segmentation(
        self, picture: str | None, names: str, settings: Settings, around: Around = Around()
    ) -> Segmentation:
        """A picture, by its key, segmented by names, see ``typed_names``.

        Raises:
            SFPError: no picture, wrong names, an unknown choice, or weights that can't be had.
        """
        pixels, words = self.picture(picture), typed_names(names)
        background: str | list[str] | None = None
        if around.background:
            background = usual_background(words, [settings.method])
        if background is None and around.least > 0 and words[0][0].lower() != BACKGROUND:
            background = BACKGROUND  # a label alone
        return self.segmenter(settings)(
            pixels,
            words,
            background=background,
            prob_thd=around.least or None,
            keep_scores=True if len(words) <= _MOST_SCORES else "label",
        )

    def _inspection(self, picture: str | None, settings: Settings, detector: str) -> Inspection:
        """A picture, by its key, through the layers, with one detector's outliers.

        Raises:
            SFPError: no picture, an unknown choice, or weights that can't be had.
        """
        return self.segmenter(settings).inspect(self.picture(picture), detectors=[detector])

    def _load(self, title: str) -> Callable[[str, str, str, bool], Segmenter]:
        backbone = self.backbones[title]
        clip = load_clip(backbone.model, backbone.pretrained, **backbone.options)
        is_toyland = backbone.model.startswith("Toyland")

        @functools.lru_cache(maxsize=4)
        def make(method: str, purification: str, refinement: str, every_layer: bool) -> Segmenter:
            options = dict(TOYLAND_OPTIONS.get(method, {})) if is_toyland else {}
            if purification == OFF:
                options["purify"] = False
            elif purification != AS_PUBLISHED:
                options.update(purify=True, pm=purification)
            if every_layer and purification != OFF:
                options.update(purify=True, purify_layers=tuple(range(1, clip.trunk.layers)))
            if refinement != NONE:
                options["refine"] = [refinement]
            return Segmenter(method, clip, text_cache=self._text_cache, **options)

        return make


def typed_names(text: str) -> list[list[str]]:
    """Names as typed, see ``parse_names``, or a shipped list such as ade20k, within bounds.

    Raises:
        SFPError: none, too many, a too long or empty one, or one that stands twice.
    """
    if not text.strip():
        raise SFPError("There are no names; type what to look for, such as: cat, sofa, window.")
    if text.strip().lower() in shipped_lists():  # never another file of the server's
        return read_names(text)[0]
    names = parse_names(text)
    words = [word for name in names for word in ([name] if isinstance(name, str) else name)]
    if len(text) > MAX_NAMES_LENGTH or len(words) > MAX_WORDS:
        raise SFPError(
            f"There are {len(words)} words in {len(text)} letters; "
            f"the page takes {MAX_WORDS} words in {MAX_NAMES_LENGTH} letters."
        )
    longest = max(words, key=len)
    if len(longest) > MAX_WORD_LENGTH:
        raise SFPError(
            f"The name {longest[:20]!r}... has {len(longest)} letters; "
            f"the page takes {MAX_WORD_LENGTH}, so shorten it."
        )
    return check_names(names, "The list of names")


def purifications() -> list[str]:
    """Purifications to choose from."""
    return [AS_PUBLISHED, OFF, *list_detectors()]


def refinements() -> list[str]:
    """Refinements to choose from."""
    return [NONE, *list_refiners()]


def _draw_examples(folder: Path) -> list[Example]:
    examples = []
    for number in _SCENES:
        scene = toyland.make_scene("val", number)
        file = folder / f"scene-{number}.png"
        Image.fromarray(scene.image).save(file)
        names = ", ".join(toyland.CLASSES[label] for label in np.unique(scene.labels))
        examples.append(Example(file, names if examples else _FIRST_NAMES))
    return examples
