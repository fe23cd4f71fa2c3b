"""CVAT's "Segmentation mask 1.1": a zip in VOC's layout, of class masks and instance masks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from sfp.errors import SFPError
from sfp.exports.instances import Annotated
from sfp.files import whole_file


def write_cvat(path: Path, pictures: Iterable[Annotated]) -> None:
    """Write pictures of one list of names; the background is black, CVAT's own.

    Raises:
        SFPError: two pictures differ in their ending alone, which is no part of a name there; or
            the file can't be written.
    """
    written: dict[str, str] = {}
    labels: list[str] = []
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for picture in pictures:
            name = cvat_name(picture.file_name, written)
            labels = labels or _label_map(picture)
            kinds = np.zeros((*picture.size, 3), np.uint8)
            objects = np.zeros_like(kinds)
            for number, instance in enumerate(picture.instances, 1):
                x, y, width, height = instance.box
                place = np.s_[y : y + height, x : x + width]
                kinds[place][instance.mask] = picture.palette[instance.label]
                objects[place][instance.mask] = _voc_colour(number)
            for folder, pixels in (("SegmentationClass", kinds), ("SegmentationObject", objects)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "png")
                archive.writestr(f"{folder}/{name}.png", buffer.getvalue())
        names = "".join(f"{name}\n" for name in written)
        archive.writestr("ImageSets/Segmentation/default.txt", names)
        archive.writestr("labelmap.txt", "\n".join([*labels, ""]))


def cvat_name(file_name: str, taken: dict[str, str]) -> str:
    """A picture's name in CVAT's format, which is put into ``taken``.

    Raises:
        SFPError: another picture has it.
    """
    name = str(PurePosixPath(file_name).with_suffix(""))
    if name in taken:
        raise SFPError(
            f"{taken[name]} and {file_name} are one name in CVAT's format, which leaves endings"
            " out; rename one, or leave cvat out of --format."
        )
    taken[name] = file_name
    return name


def _label_map(picture: Annotated) -> list[str]:
    """The lines of labelmap.txt."""
    rows = [
        f"{name.replace(':', ' ')}:{','.join(map(str, colour))}::"
        for label, (name, colour) in enumerate(
            zip(picture.names, picture.palette.tolist(), strict=True)
        )
        if picture.category(label)
    ]
    return ["# label:color_rgb:parts:actions", "background:0,0,0::", *rows]


def _voc_colour(number: int) -> tuple[int, int, int]:
    """VOC's colour of an index: its bits dealt out to red, green and blue, the highest first."""
    colour = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            colour[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return colour[0], colour[1], colour[2]
