"""Cityscapes: the owners' labelIds to the 19 trainIds, everything else 255."""

from __future__ import annotations

from pathlib import Path

from sfp.datasets.layouts import CITYSCAPES_TRAIN_IDS, Layout
from sfp.datasets.preparation.recipe import Recipe
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, map_labels, require_files

# new labels of the ids 0 to 255, -1 for ids that there aren't
TABLE = tuple(
    CITYSCAPES_TRAIN_IDS.index(i) if i in CITYSCAPES_TRAIN_IDS else 255 if i < 34 else -1
    for i in range(256)
)


def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
    images = sources.folder(f"*/*{layout.image_suffix}", "leftImg8bit/val")
    labels = sources.folder("*/*_gtFine_labelIds.png", "gtFine/val")
    names = sorted(
        str(path.relative_to(images)).removesuffix(layout.image_suffix)
        for path in images.glob(f"*/*{layout.image_suffix}")
    )
    require_files((labels / f"{name}_gtFine_labelIds.png" for name in names), "label")
    made = Plan(images=len(names))
    for name in names:
        label, ids = layout.label(name, root), labels / f"{name}_gtFine_labelIds.png"
        made.add_pair(
            (layout.image(name, root), images / f"{name}{layout.image_suffix}"),
            label,
            map_labels,
            ids,
            TABLE,
            "labelIds",
        )
    return made


RECIPE = Recipe(
    plan,
    needed=("*/leftImg8bit/val/*.png", "*/gtFine/val/*_gtFine_labelIds.png"),
    obtain="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of Cityscapes, after registration on its page",
)
