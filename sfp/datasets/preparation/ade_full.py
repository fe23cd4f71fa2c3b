"""The full ADE20K (2021_17_01) with 847 classes, MaskFormer's recipe.

The class id is (R div 10) * 256 + G in ``<name>_seg.png``. Images whose short side exceeds 512 are
shrunk to 512 (image bilinear, label nearest) and saved as JPEG with PIL's quality, as there; others
are saved anew there and linked here, pixel by pixel the owners' own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sfp.datasets.layouts import Layout
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import (
    Plan,
    Step,
    link_file,
    read_image,
    require_files,
    write_labels,
)
from sfp.errors import SFPError
from sfp.files import whole_file

IDS_FILE = Path(__file__).with_name("ade847_ids.txt")  # in the order of the labels 0 to 846
_SHORT_SIDE = 512
_IGNORE = 65535


def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
    _opencv()  # before anything is written
    folder = sources.folder("**/ADE_val_*.jpg", "ADE20K_2021_17_01/images/ADE/validation")
    images = sorted(folder.glob("**/ADE_val_*.jpg"), key=lambda path: path.name)
    require_files((path.with_name(f"{path.stem}_seg.png") for path in images), "label")
    names = [path.stem for path in images]
    made = Plan(images=len(names), lists={root / layout.split: names})
    table = read_table()
    for image in images:
        label = image.with_name(f"{image.stem}_seg.png")
        made.steps += [
            Step(layout.image(image.stem, root), shrink_image, (image,)),
            Step(layout.label(image.stem, root), convert_label, (label, table)),
        ]
    return made


def read_table() -> np.ndarray:
    """The label of each class id (65536,), uint16; 65535 for the ids that are not among the 847."""
    table = np.full(65536, _IGNORE, np.uint16)
    ids = np.array(IDS_FILE.read_text().split(), int)
    table[ids] = np.arange(len(ids))
    return table


def shrunk_size(height: int, width: int) -> tuple[int, int] | None:
    """Height and width with a short side of 512, None where it is not longer."""
    if min(height, width) <= _SHORT_SIDE:
        return None
    if width >= height:
        return _SHORT_SIDE, round(width / height * _SHORT_SIDE)
    return round(height / width * _SHORT_SIDE), _SHORT_SIDE


def shrink_image(target: Path, source: Path) -> None:
    """Write an image with a short side of at most 512.

    Raises:
        SFPError: an unreadable source.
    """
    image = read_image(source, ("RGB", "L", "CMYK"))
    size = shrunk_size(image.height, image.width)
    if size is None:
        link_file(target, source)
        return
    pixels = _opencv().resize(np.asarray(image.convert("RGB")), size[::-1])  # bilinear
    with whole_file(target) as partial:
        Image.fromarray(pixels).save(partial)


def convert_label(target: Path, source: Path, table: np.ndarray) -> None:
    """Write the 847 labels as a uint16 TIFF, shrunk as the image is.

    Raises:
        SFPError: an unreadable source.
    """
    pixels = np.asarray(read_image(source, ("RGB",)))
    ids = pixels[..., 0].astype(np.int32) // 10 * 256 + pixels[..., 1]
    labels = table[ids]
    size = shrunk_size(*labels.shape)
    if size is not None:
        cv2 = _opencv()
        labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    write_labels(target, labels)


def _opencv():
    """OpenCV, with which the recipe resizes: PIL's bilinear filter blurs where it shrinks.

    Raises:
        SFPError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise SFPError(
            'Preparing ade847 needs OpenCV; install it with pip install "sfp-ovss[mmseg]".'
        ) from error
    return cv2
