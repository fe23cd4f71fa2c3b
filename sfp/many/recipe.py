"""What is asked of every picture, in plain values that another process or machine can be sent, and
how a picture's results are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfp.errors import SFPError
from sfp.files import make_folder, whole_file
from sfp.many.items import Item

if TYPE_CHECKING:
    from sfp.api import Segmenter
    from sfp.images import ImageLike
    from sfp.result import Segmentation

LABELS, OVERLAY, STRIP, WHOLE = "_labels.png", "_overlay.jpg", "_methods.png", "_result.npz"


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
        parts: scores are kept of each connected part of a name.
        asked: all of it that changes a result, plain values as in JSON.
    """

    methods: Sequence[str]
    names: Sequence[str | Sequence[str]]
    background: str | Sequence[str] | None = None
    model: str = "ViT-B/16"
    pretrained: str = "openai"
    device: str | None = None
    options: dict[str, Any] | None = None
    strip: bool = False
    overlay: bool = True
    whole: bool = False
    parts: bool = False
    asked: dict[str, Any] | None = None

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
            found.append(
                Segmenter(method, clip, self.pretrained, self.device, **self.options or {})
            )
        cards = [each.protocol(self.names, background=self.background) for each in found]
        return Asked(self, found, {"methods": cards} if self.strip else cards[0])


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
                keep_scores=recipe.whole,
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
        """Write a picture's files and say in a line what was found.

        Raises:
            SFPError: they can't be written.
        """
        from sfp.result import compare, png_provenance

        files = [out / f"{stem}{ending}" for ending in self.recipe.endings]
        make_folder(files[0].parent)
        record = {**self.card, "source": item.source}
        if self.recipe.strip:
            shown = dict(zip(self.recipe.methods, results, strict=True))
            with whole_file(files[0]) as partial:
                compare(shown).save(partial, pnginfo=png_provenance(record))
            return "compared"
        result = replace(results[0], protocol=record)
        for file in reversed(files):  # the one that says that it is done comes last
            result.save(file)
        return ", ".join(f"{name} {100 * area:.1f}%" for name, area in result.areas.items())

    def is_done(self, out: Path, stem: str, item: Item) -> bool:
        """Whether the picture's files are there, made of it by this recipe."""
        from sfp.result import read_provenance

        files = [out / f"{stem}{ending}" for ending in self.recipe.endings]
        return all(file.is_file() for file in files) and read_provenance(files[0]) == {
            **self.card,
            "source": item.source,
        }
