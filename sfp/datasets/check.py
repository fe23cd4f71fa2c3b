"""Is a prepared dataset sound? Every image and label is read, and all problems are listed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfp.datasets.exact import PICTURES, turned_by, why_inexact
from sfp.datasets.layouts import Layout, find_layout, unfinished_marker
from sfp.datasets.parallel import in_parallel
from sfp.errors import SFPError

_FEW = 8  # so many labels are named in a sentence


@dataclass(frozen=True)
class Findings:
    """What a check found: problems, one sentence each; pairs that were read; pixels by label."""

    problems: tuple[str, ...]
    images: int
    pixels: dict[int, int]

    def histogram(self, layout: Layout) -> str:
        """Percent of the pixels for each label that occurs, six on a line."""
        total = sum(self.pixels.values())
        names = {layout.ignore: "ignore"}
        cells = [
            f"{names.get(label, label):>6} {100 * count / total:6.2f}%"
            for label, count in sorted(self.pixels.items())
        ]
        return "\n".join("  ".join(cells[i : i + 6]) for i in range(0, len(cells), 6))


def check_dataset(name: str, data: Path, workers: int = 1, subset: bool = False) -> Findings:
    """Check a dataset.

    Args:
        name: of the dataset.
        data: the data root.
        workers: processes.
        subset: it is a part of the published split on purpose, so its number of images and classes
            that never occur are no problem.

    Raises:
        SFPError: an unknown name, or the dataset's folder does not exist.
    """
    layout = find_layout(name)
    root = data / layout.root
    if not root.is_dir():
        raise SFPError(
            f"There is no {root}; prepare {name} with sfp prepare, or give --data the "
            "folder that has it."
        )
    problems = []
    if unfinished_marker(layout, root).exists():
        problems.append(f"The preparation of {root} was interrupted; run sfp prepare {name} again.")
    names = _names(layout, root, problems)
    if not names:
        return Findings(tuple(problems), 0, {})
    if layout.published and len(names) != layout.published and not subset:
        problems.append(
            f"There are {len(names)} images, but the published split has {layout.published}; "
            "complete it, or say --subset if it is a part."
        )
    problems += _unpaired(layout, root, names)
    pairs = [
        n for n in names if layout.image(n, root).is_file() and layout.label(n, root).is_file()
    ]
    pixels: Counter[int] = Counter()
    check = functools.partial(check_pair, layout, root)
    for found, counts in in_parallel(check, pairs, workers, f"checking {name}"):
        problems += found
        pixels.update(counts)
    whole = not subset and len(names) == len(pairs) and layout.published in (None, len(names))
    problems += _wrong_labels(layout, pixels, whole)
    return Findings(tuple(problems), len(pairs), dict(pixels))


def _names(layout: Layout, root: Path, problems: list[str]) -> list[str]:
    """The names of the split's images, each once; none with the reason added to ``problems``."""
    again = f"prepare {layout.name} again."
    if layout.split is None:
        folder, suffix = root / layout.images, layout.image_suffix
        found = sorted(str(path.relative_to(folder)) for path in _files(folder, suffix))
        if not found:
            problems.append(f"There is no image *{suffix} in {folder}; {again}")
        return [name.removesuffix(suffix) for name in found]
    path = root / layout.split
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"The split list {path} can't be read ({error}); {again}")
        return []
    if not any(lines):
        problems.append(f"The split list {path} is empty; delete it and {again}")
        return []
    places: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 1):
        places.setdefault(line, []).append(number)
    for number in places.pop("", []):
        problems.append(f"Line {number} of the split list {path} is empty; delete it.")
    for line, numbers in places.items():
        if len(numbers) > 1:
            problems.append(
                f"The split list {path} has {line!r} {len(numbers)} times (lines "
                f"{', '.join(map(str, numbers))}); leave one."
            )
    return list(places)


def _files(folder: Path, suffix: str = "") -> Iterator[Path]:
    return (p for p in folder.rglob(f"*{suffix}") if p.is_file() and not p.name.startswith("."))


def _unpaired(layout: Layout, root: Path, names: list[str]) -> Iterator[str]:
    """Images without label, labels without image, and files that are neither."""
    for name in names:
        for kind, path in (
            ("image", layout.image(name, root)),
            ("label", layout.label(name, root)),
        ):
            if not path.is_file():
                yield f"The {kind} {path} is missing; prepare {layout.name} again."
    images, labels = root / layout.images, root / layout.labels
    known = set(names)
    for path in sorted(_files(images)):
        if not path.name.endswith(layout.image_suffix) or ".partial." in path.name:
            hint = "rename" if path.suffix.lower() in PICTURES[:2] else "delete"
            yield f"The stray file {path} is no image *{layout.image_suffix}; {hint} it."
        else:
            known.add(str(path.relative_to(images)).removesuffix(layout.image_suffix))
    for path in sorted(_files(labels)):
        # there may be the owners' other files of the same images, such as 0001_gtFine_color.png
        file = str(path.relative_to(labels))
        starts = (file[:i] for i, character in enumerate(file) if character in "._")
        if ".partial." in file or not any(start in known for start in starts):
            yield (
                f"The stray file {path} in the labels' folder has no image; delete it, or add "
                f"{file.split('.')[0]} to the images."
            )


def check_pair(layout: Layout, root: Path, name: str) -> tuple[list[str], dict[int, int]]:
    """The problems of one image and its label, and the label's histogram."""
    problems: list[str] = []
    image, label = layout.image(name, root), layout.label(name, root)
    redo = f"delete it and prepare {layout.name} again."  # preparation keeps files that are there
    picture, turned = _read(image, problems, redo, turned_by)
    labels, inexact = _read(label, problems, redo, why_inexact)
    if turned is not None:
        problems.append(f"The image {image} {turned}; save its pixels as the labels lie.")
    if labels is None:
        return problems, {}

    def complain(of_label: str) -> None:
        problems.append(f"The label {label} {of_label}; {redo}")

    if picture is not None and picture.size != labels.size:
        sizes = [f"{of.width} x {of.height}" for of in (labels, picture)]
        complain(f"has {sizes[0]} pixels, its image {sizes[1]}")
    bits = {"1": 1, "L": 8, "P": 8, "I": 16, "I;16": 16, "I;16B": 16}.get(labels.mode)
    if inexact is not None:
        complain(inexact)
    elif bits != layout.bits:
        found = f"{bits} bits a pixel" if bits else f"pixels of mode {labels.mode}"
        complain(f"has {found}, but {layout.name} needs {layout.bits}")
    if bits is None:
        return problems, {}
    bins = np.bincount(np.asarray(labels).ravel())
    counts = {int(value): int(bins[value]) for value in np.flatnonzero(bins)}
    strange = [value for value in counts if value > layout.top and value != layout.ignore]
    if strange:
        named = _several(f"{value} ({100 * counts[value] / bins.sum():.2f}%)" for value in strange)
        allowed = f"0 to {layout.top}"
        if layout.ignore is not None:
            allowed += f" and {layout.ignore}"
        complain(f"has the value{'s' * (len(strange) > 1)} {named}, outside {allowed}")
    return problems, counts


def _read(
    path: Path, problems: list[str], redo: str, look: Callable[[Image.Image], str | None]
) -> tuple[Image.Image | None, str | None]:
    """An image, decoded to its end, and what ``look`` says of it before; None with the reason added
    to ``problems``.
    """
    try:
        image = Image.open(path)
        found = look(image)
        image.load()
        return image, found
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        problems.append(f"{path} can't be read ({str(error).replace(str(path), 'it')}); {redo}")
        return None, None


def _several(texts: Iterable[object]) -> str:
    texts = [str(text) for text in texts]
    return ", ".join(texts[:_FEW]) + (f" and {len(texts) - _FEW} more" if len(texts) > _FEW else "")


def _wrong_labels(layout: Layout, pixels: Counter[int], whole: bool) -> Iterator[str]:
    """What all labels together say: never converted, shifted by one, or without an end's class."""
    again = (
        f"delete *{layout.label_suffix} in {layout.labels} and prepare {layout.name} again from "
        "the owners' own labels."
    )
    top, ignore = layout.top, layout.ignore
    classes = sorted(label for label in pixels if label != ignore)
    if not classes:
        if pixels:
            yield f"Every pixel of {layout.name} is to be ignored ({ignore}); {again}"
        return
    ignored = pixels[ignore] / pixels.total() if ignore is not None else 0
    outside = [label for label in classes if label > top]
    if outside == [top + 1] and classes[0] > 0:
        yield f"All labels seem shifted up by one: {top + 1} occurs and 0 does not; {again}"
    elif outside == [255] and top not in classes and layout.bits == 8:
        yield (
            "All labels seem shifted down by one: 255 occurs, which stands for -1, and "
            f"{top} does not; {again}"
        )
    elif outside and layout.owners and set(classes) <= set(layout.owners_ids):
        yield (
            f"The labels seem to be the owners' {layout.owners}, not converted "
            f"({_several(outside)} occur); {again}"
        )
    elif ignored > 0.5:
        yield (
            f"{100 * ignored:.0f}% of all pixels are to be ignored ({ignore}), as if all labels "
            f"were shifted down by one; {again}"
        )
    elif whole and layout.bits == 8:  # the large vocabularies have classes without any image
        absent = [label for label in (0, top) if label not in pixels]
        if absent:
            yield (
                f"The label {' and '.join(map(str, absent))} never occurs, as if labels were "
                f"shifted or left out; {again}"
            )
