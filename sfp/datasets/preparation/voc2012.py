"""PASCAL VOC 2012: the trainval archive already has mmsegmentation's layout; its validation images and labels are linked."""

from __future__ import annotations

from pathlib import Path

from sfp.datasets.layouts import Layout
from sfp.datasets.preparation.download import VOC2012
from sfp.datasets.preparation.recipe import Recipe
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, link_file, read_list, require_files

_FOLDER = "VOCdevkit/VOC2012"


def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
    images = sources.folder("*.jpg", f"{_FOLDER}/JPEGImages")
    labels = sources.folder("*.png", f"{_FOLDER}/SegmentationClass")
    names = read_list(sources.folder("val.txt", f"{_FOLDER}/ImageSets/Segmentation") / "val.txt")
    require_files((images / f"{name}.jpg" for name in names), "image")
    require_files((labels / f"{name}.png" for name in names), "label")
    made = Plan(images=len(names), lists={root / layout.split: names})
    for name in names:
        made.add_pair(
            (layout.image(name, root), images / f"{name}.jpg"),
            layout.label(name, root),
            link_file,
            labels / f"{name}.png",
        )
    return made


RECIPE = Recipe(
    plan,
    needed=("*/JPEGImages/*.jpg", "*/SegmentationClass/*.png", "*/ImageSets/Segmentation/val.txt"),
    obtain="VOCtrainval_11-May-2012.tar of PASCAL VOC, or the folder VOCdevkit/VOC2012 in it; --download fetches it",
    archives=(VOC2012,),
)
