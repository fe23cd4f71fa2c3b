"""COCO val2017 with the ``stuffthingmaps``: ids from 0 to 181 with gaps, 255 unlabelled. The training half isn't needed."""

from __future__ import annotations

from pathlib import Path

from sfp.datasets.layouts import COCO_IDS, COCO_THINGS, Layout
from sfp.datasets.preparation.download import COCO_STUFF_MAPS, COCO_VAL2017
from sfp.datasets.preparation.recipe import Recipe
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, map_labels, require_files

# new labels of the ids 0 to 255, -1 for ids that there aren't
STUFF_TABLE = tuple(
    255 if i == 255 else COCO_IDS.index(i) if i in COCO_IDS else -1 for i in range(256)
)
OBJECT_TABLE = tuple(
    COCO_THINGS.index(i) + 1 if i in COCO_THINGS else 0 if i in COCO_IDS or i == 255 else -1
    for i in range(256)
)


def _plan(sources: Sources, root: Path, layout: Layout, table: tuple[int, ...]) -> Plan:
    images = sources.folder("*.jpg", "images/val2017")
    maps = sources.folder(
        "*.png",
        "stuffthingmaps/val2017",
        "stuffthingmaps_trainval2017/val2017",
        "annotations/val2017",
    )
    names = sorted(path.stem for path in images.glob("*.jpg") if not path.name.startswith("."))
    require_files((maps / f"{name}.png" for name in names), "label")
    require_files(
        (images / f"{path.stem}.jpg" for path in maps.glob("*.png") if path.stem.isdecimal()),
        "image",
    )
    made = Plan(images=len(names))
    for name in names:
        label, ids = layout.label(name, root), maps / f"{name}.png"
        made.add_pair(
            (layout.image(name, root), images / f"{name}.jpg"),
            label,
            map_labels,
            ids,
            table,
            "stuffthingmaps' ids",
        )
    return made


def plan_stuff(sources: Sources, root: Path, layout: Layout) -> Plan:
    """171 classes, in the order of their ids; 255 stays ignored."""
    return _plan(sources, root, layout, STUFF_TABLE)


def plan_object(sources: Sources, root: Path, layout: Layout) -> Plan:
    """80 things from 1 on; stuff and what is unlabelled is background, 0."""
    return _plan(sources, root, layout, OBJECT_TABLE)


_NEEDED = ("*/val2017/*.jpg", "*/val2017/*.png")
_OBTAIN = "val2017.zip of COCO and stuffthingmaps_trainval2017.zip of COCO-Stuff, or their folders; --download fetches them"
STUFF_RECIPE = Recipe(plan_stuff, _NEEDED, _OBTAIN, (COCO_VAL2017, COCO_STUFF_MAPS))
OBJECT_RECIPE = Recipe(plan_object, _NEEDED, _OBTAIN, (COCO_VAL2017, COCO_STUFF_MAPS))
