"""CSV: how much of each picture each name takes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from sfp.exports.instances import Annotated


def area_table(pictures: Iterable[Annotated]) -> str:
    """A row for each picture of one list of names, and a column for each name: its share of the
    picture, from 0 to 1.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for number, picture in enumerate(pictures):
        if not number:
            table.writerow(["picture", *picture.names])
        pixels = [0] * len(picture.names)
        for instance in picture.instances:
            pixels[instance.label] += instance.area
        whole = picture.size[0] * picture.size[1]
        if picture.background:
            pixels[0] = whole - sum(pixels)
        shares = [round(count / whole, 6) for count in pixels]
        table.writerow([picture.file_name, *shares])
    return text.getvalue()
