"""PASCAL Context with 59 classes and background: VOC 2010's images and ``trainval_merged.json``.

The json has ``images`` (image_id, file_name, height, width, phase) and ``annos_segmentation``
(image_id, category_id, segmentation: a run-length mask with size and counts); later masks cover
earlier ones. PASCAL in Detail's own reader deletes from these lists while it walks through them and
so can lose entries; this reads them all.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sfp.datasets.layouts import Layout
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, Step, link_file, require_files, write_labels
from sfp.errors import SFPError

JSON = "VOCdevkit/VOC2010/trainval_merged.json"
# of the 459 classes; an id's place here is its new label, 0 the background
SOURCE_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


def read_json(path: Path) -> dict:
    """The json's contents.

    Raises:
        SFPError: it can't be read, or lacks a part.
    """
    try:
        contents = json.loads(path.read_text())
        missing = {"images", "annos_segmentation"} - set(contents)
    except (OSError, ValueError, TypeError) as error:
        message = f"The source's {path} can't be read as json ({error}); fetch it again."
        raise SFPError(message) from error
    if missing:
        raise SFPError(
            f"The source's {path} lacks {' and '.join(sorted(missing))}; take PASCAL in Detail's "
            "trainval_merged.json."
        )
    return contents


def names_of(contents: dict, phase: str) -> list[str]:
    """The names of a phase's images, sorted."""
    files = (image["file_name"] for image in contents["images"] if image["phase"] == phase)
    return sorted(PurePosixPath(file).stem for file in files)


def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
    images = sources.folder("*.jpg", "VOCdevkit/VOC2010/JPEGImages")
    path = sources.file(JSON)
    if path is None:
        raise SFPError(
            f"There is no trainval_merged.json in {sources}; add --source with it, it is not part "
            "of VOC 2010."
        )
    contents = read_json(path)
    try:
        masks: dict[int, list] = {image["image_id"]: [] for image in contents["images"]}
        for annotation in contents["annos_segmentation"]:
            mask = (annotation["category_id"], annotation["segmentation"]["counts"])
            masks[annotation["image_id"]].append(mask)
        names = {phase: names_of(contents, phase) for phase in ("train", "val")}
        kept = [image for image in contents["images"] if image["phase"] in names]
        sizes = [(image["width"], image["height"]) for image in kept]
    except (KeyError, TypeError) as error:
        raise SFPError(
            f"The source's {path} has an entry without {error}; take PASCAL in Detail's "
            "trainval_merged.json."
        ) from error
    require_files((images / image["file_name"] for image in kept), "image")
    folder = root / Path(layout.split).parent
    lists = {folder / f"{phase}.txt": listed for phase, listed in names.items()}
    plan = Plan(images=len(names["val"]), lists=lists)
    for image, size in zip(kept, sizes, strict=True):
        name = PurePosixPath(image["file_name"]).stem
        file = images / image["file_name"]
        drawn = (file, masks[image["image_id"]], size)
        plan.steps += [
            Step(layout.image(name, root), link_file, (file,)),
            Step(layout.label(name, root), draw_masks, drawn),
        ]
    return plan


def draw_masks(
    target: Path, image: Path, masks: list[tuple[int, str | list[int]]], size: tuple[int, int]
) -> None:
    """Draw an image's masks (category id, run lengths) over each other and write labels 0 to 59.

    Args:
        target: the labels' file.
        image: the image's file.
        masks: of the image.
        size: (width, height) as the json has it.

    Raises:
        SFPError: a size or a mask that doesn't fit, or one of a class that is not among the 59.
    """
    name = image.stem
    with Image.open(image) as opened:
        width, height = opened.size
    if size != (width, height):
        raise SFPError(
            f"trainval_merged.json has the size {size[0]} x {size[1]} for {image}, which has "
            f"{width} x {height} pixels; fetch both again."
        )
    labels = np.zeros((height, width), np.uint8)
    for category, counts in masks:
        if category not in SOURCE_IDS:
            raise SFPError(
                f"trainval_merged.json has the class {category} in {name}, none of the 59; take "
                "PASCAL in Detail's file."
            )
        try:
            labels[decode_mask(counts, height, width)] = SOURCE_IDS.index(category)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise SFPError(
                f"trainval_merged.json has a broken mask of the class {category} in {name} "
                f"({error}); fetch it again."
            ) from error
    write_labels(target, labels)


def decode_mask(counts: str | list[int], height: int, width: int) -> np.ndarray:
    """The mask (height, width), bool, of COCO's run lengths, as numbers or packed into a text.

    Raises:
        ValueError: the runs don't cover it exactly. TypeError, ArithmeticError: they are none.
    """
    if isinstance(counts, str):
        # five bits to a character, "P" to "o" before others of the same number; pycocotools
        # writes past its memory where the last number has no end
        if not re.fullmatch(r"([P-o]{0,6}[0-O])+", counts):
            raise ValueError("its text is none of run lengths")
        runs = {"size": [height, width], "counts": counts}
    else:
        runs = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    mask = coco_mask.decode(runs).astype(bool)
    try:  # pycocotools refuses runs of more pixels, and leaves what they don't cover to chance
        coco_mask.decode({**runs, "size": [height * width - 1, 1]})
    except ValueError:
        return mask
    raise ValueError(f"its runs cover less than {height} x {width} pixels")
