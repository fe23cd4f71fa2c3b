"""Where each dataset lies under the data root and what its labels are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sfp.errors import unknown_choice

# the labelId of each trainId
CITYSCAPES_TRAIN_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)  # thing ids that no COCO image has
COCO_IDS = tuple(i for i in range(182) if i not in COCO_UNUSED)
COCO_THINGS = tuple(i for i in COCO_IDS if i < 91)


@dataclass(frozen=True)
class Layout:
    """One dataset.

    Args:
        name: as ``configs/cfg_<name>.py`` has it.
        root: its folder under the data root; ``images`` and ``labels`` are folders in it.
        image_suffix, label_suffix: what follows the image's name.
        classes: how many are evaluated.
        reduce_zero: label 0 is ignored and the classes are 1 to ``classes``.
        ignore: the label that is never counted, None where there is none.
        split: the list of names, in ``root``; None where all images in the folder are the split.
        published: how many images the published split has; None where that is not settled.
        bits: of a label's pixel, 8 or 16.
        owners: what the owners' own labels are called, and ``owners_ids`` which they are: found in
            a prepared tree, they were never converted.
    """

    name: str
    root: str
    images: str
    labels: str
    image_suffix: str
    label_suffix: str
    classes: int
    reduce_zero: bool = False
    ignore: int | None = None
    split: str | None = None
    published: int | None = None
    bits: int = 8
    owners: str = ""
    owners_ids: tuple[int, ...] = ()

    @property
    def top(self) -> int:
        """The largest label; all from 0 to it may occur, and ``ignore``."""
        return self.classes if self.reduce_zero else self.classes - 1

    def image(self, name: str, root: Path) -> Path:
        return root / self.images / f"{name}{self.image_suffix}"

    def label(self, name: str, root: Path) -> Path:
        return root / self.labels / f"{name}{self.label_suffix}"


_VOC = partial(
    Layout, root="VOCdevkit/VOC2012", images="JPEGImages", labels="SegmentationClass",
    image_suffix=".jpg", label_suffix=".png", ignore=255, published=1449,
    split="ImageSets/Segmentation/val.txt",
)  # fmt: skip
_CONTEXT = partial(
    Layout, root="VOCdevkit/VOC2010", images="JPEGImages", image_suffix=".jpg",
    split="ImageSets/SegmentationContext/val.txt",
)  # fmt: skip
_CONTEXT60 = partial(
    _CONTEXT, labels="SegmentationClassContext", label_suffix=".png",
    owners="ids of the 459 classes", owners_ids=tuple(range(460)),
)  # fmt: skip
_COCO = partial(  # one tree for both, since the labels' suffixes differ
    Layout, root="coco_stuff164k", images="images/val2017", labels="annotations/val2017",
    image_suffix=".jpg", published=5000, owners="ids of the stuffthingmaps",
    owners_ids=(*range(182), 255),
)  # fmt: skip
_ALL = (
    _VOC("voc20", classes=20, reduce_zero=True),
    _VOC("voc21", classes=21),
    _CONTEXT60("context59", classes=59, reduce_zero=True),
    _CONTEXT60("context60", classes=60),
    _CONTEXT(
        "context459", labels="annotations_detectron2/pc459_val", label_suffix=".tif", classes=459,
        ignore=65535, bits=16,
    ),
    _COCO("coco_object", label_suffix="_instanceTrainIds.png", classes=81),
    _COCO("coco_stuff164k", label_suffix="_labelTrainIds.png", classes=171, ignore=255),
    Layout(
        "ade20k", "ADEChallengeData2016", "images/validation", "annotations/validation", ".jpg",
        ".png", 150, reduce_zero=True, published=2000,
    ),
    Layout(
        "ade847", "ADE20K_2021_17_01", "images_detectron2/validation",
        "annotations_detectron2/validation", ".jpg", ".tif", 847, ignore=65535, bits=16,
        split="validation.txt", published=2000,
    ),
    Layout(
        "city_scapes", "cityscapes", "leftImg8bit/val", "gtFine/val", "_leftImg8bit.png",
        "_gtFine_labelTrainIds.png", 19, ignore=255, published=500, owners="labelIds",
        owners_ids=tuple(range(34)),
    ),
)  # fmt: skip
LAYOUTS = {layout.name: layout for layout in _ALL}


def find_layout(name: str) -> Layout:
    """The layout of a dataset.

    Raises:
        SFPError: unknown name; the closest is offered.
    """
    if name not in LAYOUTS:
        raise unknown_choice("dataset", name, LAYOUTS)
    return LAYOUTS[name]


def unfinished_marker(layout: Layout, root: Path) -> Path:
    """A file that lies in ``root`` from a preparation's start to its end."""
    return root / f".unfinished_{layout.name}"
