"""Is a prepared dataset sound? Every image and label is read before anything is computed on them, and all problems are listed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfp.datasets.layouts import Layout, find_layout, unfinished_marker
from sfp.datasets.parallel import in_parallel
from sfp.errors import SFPError

_FEW = 8  # so many labels are named in a sentence


@dataclass(frozen=True)
class Findings:
    """What a check found: the problems, one sentence each; how many pairs were read; the pixels of each label."""

    problems: tuple[str, ...]
    images: int
    pixels: dict[int, int]

    def histogram(self, layout: Layout) -> str:
        """Percent of the pixels for each label that occurs, six on a line."""
        total = sum(self.pixels.values())
        cells = [
            f"{'ignore' if label == layout.ignore else label:>6} {100 * n / total:6.2f}%"
            for label, n in sorted(self.pixels.items())
        ]
        return "\n".join("  ".join(cells[i : i + 6]) for i in range(0, len(cells), 6))


def check_dataset(name: str, data: Path, workers: int = 1, subset: bool = False) -> Findings:
    """Check a dataset under the data root ``data``.

    Args:
        subset: it is a part of the published split on purpose, so its number of images and what never occurs is no problem.

    Raises:
        SFPError: an unknown name, or the dataset's folder does not exist.
    """
    layout = find_layout(name)
    root = data / layout.root
    if not root.is_dir():
        raise SFPError(
            f"There is no {root}; prepare {name} with tools/prepare_dataset.py, or give --data the folder that has it."
        )
    problems = []
    if unfinished_marker(layout, root).exists():
        problems.append(
            f"The preparation of {root} was interrupted; run tools/prepare_dataset.py {name} again."
        )
    names = _names(layout, root, problems)
    if names is None:
        return Findings(tuple(problems), 0, {})
    if layout.published and len(names) != layout.published and not subset:
        problems.append(
            f"There are {len(names)} images, but the published split has {layout.published}; complete it, or say --subset if it is a part."
        )
    problems += _unpaired(layout, root, names)
    pairs = [
        name
        for name in names
        if layout.image(name, root).is_file() and layout.label(name, root).is_file()
    ]
    pixels: Counter[int] = Counter()
    for found, counts in in_parallel(
        functools.partial(check_pair, layout, root), pairs, workers, f"checking {name}"
    ):
        problems += found
        pixels.update(counts)
    whole = not subset and len(names) == len(pairs) and layout.published in (None, len(names))
    problems += _wrong_labels(layout, pixels, whole)
    return Findings(tuple(problems), len(pairs), dict(pixels))


def _names(layout: Layout, root: Path, problems: list[str]) -> list[str] | None:
    """The names of the split's images, each once; None where there are none, with the reason added to ``problems``."""
    folder = root / layout.images
    if layout.split is None:
        names = sorted(
            str(p.relative_to(folder)).removesuffix(layout.image_suffix)
            for p in _files(folder, layout.image_suffix)
        )
        if not names:
            problems.append(
                f"There is no image *{layout.image_suffix} in {folder}; prepare {layout.name} again."
            )
        return names or None
    path = root / layout.split
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(
            f"The split list {path} can't be read ({error}); prepare {layout.name} again."
        )
        return None
    if not any(lines):
        problems.append(
            f"The split list {path} is empty; delete it and prepare {layout.name} again."
        )
        return None
    for number, line in enumerate(lines, 1):
        if not line:
            problems.append(f"Line {number} of the split list {path} is empty; delete it.")
    for line, times in Counter(filter(None, lines)).items():
        if times > 1:
            numbers = ", ".join(
                str(number) for number, other in enumerate(lines, 1) if other == line
            )
            problems.append(
                f"The split list {path} has {line!r} {times} times (lines {numbers}); leave one."
            )
    return list(dict.fromkeys(filter(None, lines)))


def _files(folder: Path, suffix: str = "") -> Iterator[Path]:
    return (p for p in folder.rglob(f"*{suffix}") if p.is_file() and not p.name.startswith("."))


def _unpaired(layout: Layout, root: Path, names: list[str]) -> Iterator[str]:
    """Images without label, labels without image, and files that are neither."""
    for name in names:
        image, label = layout.image(name, root), layout.label(name, root)
        if not image.is_file():
            yield f"The image {image} is missing; prepare {layout.name} again."
        if not label.is_file():
            yield f"The label {label} is missing; prepare {layout.name} again."
    images, labels = root / layout.images, root / layout.labels
    known = set(names)
    for path in sorted(_files(images)):
        if not path.name.endswith(layout.image_suffix) or ".partial." in path.name:
            yield f"The stray file {path} is no image *{layout.image_suffix}; delete it."
        else:
            known.add(str(path.relative_to(images)).removesuffix(layout.image_suffix))
    for path in sorted(_files(labels)):
        # beside the labels there may be the owners' other files of the same images, such as 0001_gtFine_color.png
        file = str(path.relative_to(labels))
        starts = (file[:i] for i, character in enumerate(file) if character in "._")
        if ".partial." in file or not any(start in known for start in starts):
            yield f"The stray file {path} in the labels' folder has no image; delete it, or add {file.split('.')[0]} to the images."


def check_pair(layout: Layout, root: Path, name: str) -> tuple[list[str], dict[int, int]]:
    """The problems of one image and its label, and the label's histogram."""
    problems = []
    image, label = layout.image(name, root), layout.label(name, root)
    redo = f"delete it and prepare {layout.name} again."  # preparation keeps files that are there
    picture, labels = _read(image, problems, redo), _read(label, problems, redo)
    if labels is None:
        return problems, {}
    if picture is not None and picture.size != labels.size:
        problems.append(
            f"The label {label} has {labels.width} x {labels.height} pixels, its image {picture.width} x {picture.height}; {redo}"
        )
    if labels.format not in ("PNG", "TIFF"):
        problems.append(
            f"The label {label} is a {labels.format} inside, which changes labels; {redo}"
        )
    if labels.mode in ("RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA"):
        problems.append(
            f"The label {label} has colours ({labels.mode}) instead of labels, which must be indices, with or without palette; {redo}"
        )
        return problems, {}
    bits = {"1": 1, "L": 8, "P": 8, "I;16": 16, "I;16B": 16}.get(labels.mode)
    if bits != layout.bits:
        found = f"{bits} bits a pixel" if bits else f"pixels of mode {labels.mode}"
        problems.append(
            f"The label {label} has {found}, but {layout.name} needs {layout.bits}; {redo}"
        )
        if bits is None:
            return problems, {}
    bins = np.bincount(np.asarray(labels).ravel())
    counts = {int(value): int(bins[value]) for value in np.flatnonzero(bins)}
    strange = [value for value in counts if value > layout.top and value != layout.ignore]
    if strange:
        named = _several(f"{value} ({100 * counts[value] / bins.sum():.2f}%)" for value in strange)
        problems.append(
            f"The label {label} has the value{'s' * (len(strange) > 1)} {named}, outside {_allowed(layout)}; {redo}"
        )
    return problems, counts


def _read(path: Path, problems: list[str], redo: str) -> Image.Image | None:
    """An image, decoded to its end; None where that fails, with the reason added to ``problems``."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        problems.append(f"{path} can't be read ({str(error).replace(str(path), 'it')}); {redo}")
        return None


def _allowed(layout: Layout) -> str:
    return f"0 to {layout.top}" + (f" and {layout.ignore}" if layout.ignore is not None else "")


def _several(texts: Iterable[object]) -> str:
    texts = [str(text) for text in texts]
    return ", ".join(texts[:_FEW]) + (f" and {len(texts) - _FEW} more" if len(texts) > _FEW else "")


def _wrong_labels(layout: Layout, pixels: Counter[int], whole: bool) -> Iterator[str]:
    """What the labels of all images together say: never converted, shifted by one, an end of the classes that never occurs."""
    again = f"delete *{layout.label_suffix} in {layout.labels} and prepare {layout.name} again from the owners' own labels."
    classes = sorted(label for label in pixels if label != layout.ignore)
    if not classes:
        if pixels:
            yield f"Every pixel of {layout.name} is to be ignored ({layout.ignore}); {again}"
        return
    ignored = pixels[layout.ignore] / pixels.total() if layout.ignore is not None else 0
    outside = [label for label in classes if label > layout.top]
    if outside == [layout.top + 1] and classes[0] > 0:
        yield f"All labels seem shifted up by one: {layout.top + 1} occurs and 0 does not; {again}"
    elif outside == [255] and layout.top not in classes and layout.bits == 8:
        yield f"All labels seem shifted down by one: 255 occurs, which stands for -1, and {layout.top} does not; {again}"
    elif outside and layout.owners and set(classes) <= set(layout.owners_ids):
        yield f"The labels seem to be the owners' {layout.owners}, not converted ({_several(outside)} occur); {again}"
    elif ignored > 0.5:
        yield f"{100 * ignored:.0f}% of all pixels are to be ignored ({layout.ignore}), as if all labels were shifted down by one; {again}"
    elif (
        whole and layout.bits == 8
    ):  # the two large vocabularies have classes that their validation images lack
        absent = [label for label in (0, layout.top) if label not in pixels]
        if absent:
            yield f"The label {' and '.join(map(str, absent))} never occurs, as if labels were shifted or left out; {again}"
