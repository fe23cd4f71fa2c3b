"""What is asked of every picture, in plain values that another process or machine can be sent, and
how a picture's results are written and known again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfp.errors import SFPError
from sfp.exports.png import png_provenance, read_provenance
from sfp.files import make_folder, whole_file
from sfp.many.items import Item

if TYPE_CHECKING:
    from sfp.api import Segmenter
    from sfp.images import ImageLike
    from sfp.result import Segmentation

LABELS, OVERLAY, STRIP, WHOLE = "_labels.png", "_overlay.jpg", "_methods.png", "_result.npz"
_OF_PICTURE = ("source", "scores", "asked")  # what a record says of its picture and its command


@dataclass(frozen=True)
class Recipe:
    """Methods, model, names and the files that are wanted.

    Attributes:
        methods: their names.
        names, background: as ``Segmenter`` takes them.
        model, pretrained, device: as ``Segmenter`` takes them.
        options: the others of ``Segmenter``.
        strip: write one picture that compares the methods; else the results of the first.
        overlay, whole: also write the overlay, the .npz.
        parts: scores are those of each connected part of a name.
        asked: all of it that changes a result, plain values as in JSON.
    """

    methods: Sequence[str]
    names: Sequence[str | Sequence[str]]
    background: str | Sequence[str] | None = None
    model: str = "ViT-B/16"
    pretrained: str = "openai"
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    strip: bool = False
    overlay: bool = True
    whole: bool = False
    parts: bool = False
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def endings(self) -> list[str]:
        """Of a picture's files; the first one carries the record of what made it."""
        if self.strip:
            return [STRIP]
        return [LABELS, *[OVERLAY] * self.overlay, *[WHOLE] * self.whole]

    def build(self) -> Asked:
        """The recipe with its models loaded.

        Raises:
            SFPError: see ``Segmenter``.
        """
        from sfp.api import Segmenter

        found: list[Segmenter] = []
        for method in self.methods:  # all on one frozen CLIP
            clip = found[0].pipeline.method.clip if found else self.model
            found.append(Segmenter(method, clip, self.pretrained, self.device, **self.options))
        cards = [each.protocol(self.names, background=self.background) for each in found]
        card = {"methods": cards} if self.strip else _with_names(cards[0])
        return Asked(self, found, {**card, "parts": self.parts})


@dataclass(frozen=True)
class Asked:
    """A recipe with its models.

    Attributes:
        card: the settings, as results carry them.
    """

    recipe: Recipe
    segmenters: list[Segmenter]
    card: dict[str, Any]

    def segment(self, images: Iterable[ImageLike]) -> Iterator[list[Segmentation] | SFPError]:
        """Each image's result by each method, in order, or what is wrong with the image."""
        recipe = self.recipe
        streams = [
            segmenter.many(
                own,
                recipe.names,
                background=recipe.background,
                keep_scores=False if recipe.strip else recipe.whole or "label",
                yield_errors=True,
            )
            for segmenter, own in zip(
                self.segmenters, tee(images, len(self.segmenters)), strict=True
            )
        ]
        for results in zip(*streams, strict=True):
            error = next((each for each in results if isinstance(each, SFPError)), None)
            yield error or list(results)

    def write(self, out: Path, stem: str, item: Item, results: list[Segmentation]) -> str:
        """Write a picture's files and say in a line what was found, and where it lies.

        Raises:
            SFPError: they can't be written.
        """
        from sfp.result import compare

        files = [out / f"{stem}{ending}" for ending in self.recipe.endings]
        make_folder(files[0].parent)
        record = {**self.card, "source": item.source, "asked": self.recipe.asked}
        if self.recipe.strip:
            shown = dict(zip(self.recipe.methods, results, strict=True))
            with whole_file(files[0]) as partial:
                compare(shown).save(partial, pnginfo=png_provenance(record))
            report = "compared"
        else:
            record["scores"] = scores_of(results[0], self.recipe.parts)
            result = replace(results[0], protocol=record)
            for file in reversed(files):  # the one that says that it is done comes last
                result.save(file)
            report = ", ".join(_share(name, area) for name, area in result.areas.items())
        return f"{item.title}: {report} -> {', '.join(map(str, reversed(files)))}"

    def is_done(self, out: Path, stem: str, item: Item) -> bool:
        """Whether the picture's files are there, made of it with these settings; the same may have
        been asked for in other words.
        """
        files = [out / f"{stem}{ending}" for ending in self.recipe.endings]
        record = read_provenance(files[0]) if all(file.is_file() for file in files) else None
        if record is None or record.get("source") != item.source:
            return False
        return record.get("asked") == self.recipe.asked or settings_of(record) == self.card


def scores_of(result: Segmentation, parts: bool) -> list[float]:
    """The scores of ``Segmentation.annotated``'s instances, in their order.

    Of whole names they are means over labels, for which no mask need be made: of 12 megapixels that
    takes a fifth of the time.
    """
    if parts or result.confidence is None:
        return [instance.score for instance in result.annotated(parts=parts).instances]
    labels, count = result.labels.ravel(), len(result.names)
    pixels = np.bincount(labels, minlength=count)
    sums = np.bincount(labels, result.confidence.ravel(), count)
    first = int(result.background is not None)
    return [round(float(sums[i] / pixels[i]), 4) for i in range(first, count) if pixels[i]]


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of all pictures of its run."""
    return {key: value for key, value in record.items() if key not in _OF_PICTURE}


def is_result(file: str) -> bool:
    """Whether this program made a file: it, or the PNG that came with it, carries a record."""
    for ending, carrier in ((LABELS, LABELS), (OVERLAY, LABELS), (STRIP, STRIP)):
        if file.endswith(ending):
            return read_provenance(f"{file.removesuffix(ending)}{carrier}") is not None
    return False


def _share(name: str, area: float) -> str:
    return f"{name} {100 * area:.1f}%" if area >= 0.0005 else f"{name} <0.1%"


def _with_names(card: dict[str, Any]) -> dict[str, Any]:
    """A protocol with the names of its labels."""
    label = [card["background"]] if card["background"] else []
    return {**card, "names": [*label, *(words[0] for words in card["words"])]}
