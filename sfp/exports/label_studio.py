"""Label Studio: a list of tasks with predictions as brush masks, and the labelling interface.

The masks are in rle-pack, Label Studio's own packing of a picture's RGBA bytes: a header of the
number of bytes (32 bits), the width of a value less 1 (5 bits) and four widths of lengths less 1
(4 bits each); then for each run a bit 1, which of the four widths (2 bits), the length less 1 in
that width, and the value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from sfp.drawing import Colour
from sfp.exports.instances import Annotated, Instance

_WIDTHS = (4, 8, 12, 16)  # of lengths
_LONGEST = 1 << _WIDTHS[-1]
# where Label Studio serves files of the machine, below LOCAL_FILES_DOCUMENT_ROOT
_LOCAL = "/data/local-files/?d="


def label_studio_tasks(
    pictures: Iterable[Annotated], model: str, address: str = _LOCAL
) -> list[dict[str, Any]]:
    """Tasks to import, ready for JSON: each picture with one prediction.

    Args:
        model: what made the labels, in a few words.
        address: what stands before a picture's file name.
    """
    tasks = []
    for picture in pictures:
        height, width = picture.size
        regions = []
        for number, instance in enumerate(picture.instances, 1):
            region = {
                "id": f"sfp{number}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "format": "rle",
                    "rle": brush_mask(instance, picture.size),
                    "brushlabels": [picture.names[instance.label]],
                },
            }
            if instance.score is not None:
                region["score"] = instance.score
            regions.append(region)
        prediction: dict[str, Any] = {"model_version": model, "result": regions}
        known = [(each.score, each.area) for each in picture.instances if each.score is not None]
        if known:
            areas = math.fsum(area for _, area in known)
            score = math.fsum(score * area for score, area in known) / areas
            prediction["score"] = round(score, 4)
        task = {"data": {"image": f"{address}{picture.file_name}"}, "predictions": [prediction]}
        tasks.append(task)
    return tasks


def label_studio_interface(names: Sequence[str], colours: Sequence[Colour]) -> str:
    """The labelling interface of the tasks, as XML."""
    labels = [
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>'
        for name, colour in zip(names, colours, strict=True)
    ]
    return "\n".join(
        [
            "<View>",
            '  <Image name="image" value="$image" zoom="true"/>',
            '  <BrushLabels name="label" toName="image">',
            *labels,
            "  </BrushLabels>",
            "</View>",
            "",
        ]
    )


def brush_mask(instance: Instance, size: tuple[int, int]) -> list[int]:
    """An instance in a picture of that (H, W) as the bytes of rle-pack; 255 is inside."""
    edges = 4 * np.r_[0, instance.runs(size, "C").ravel(), size[0] * size[1]]
    bits = [f"{edges[-1]:032b}{7:05b}", *(f"{width - 1:04b}" for width in _WIDTHS)]
    for place, length in enumerate(np.diff(edges).tolist()):
        value = f"{255 * (place % 2):08b}"
        while length:
            run = min(length, _LONGEST)
            which = next(i for i, width in enumerate(_WIDTHS) if run <= 1 << width)
            bits.append(f"1{which:02b}{run - 1:0{_WIDTHS[which]}b}{value}")
            length -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
