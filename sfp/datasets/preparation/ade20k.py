"""ADE20K with 150 classes: the archive already has mmsegmentation's layout; its validation images and labels are linked."""

from __future__ import annotations

from pathlib import Path

from sfp.datasets.layouts import Layout
from sfp.datasets.preparation.download import ADE20K
from sfp.datasets.preparation.recipe import Recipe
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import Plan, link_file, require_files


def plan(sources: Sources, root: Path, layout: Layout) -> Plan:
    images = sources.folder("*.jpg", "ADEChallengeData2016/images/validation")
    labels = sources.folder("*.png", "ADEChallengeData2016/annotations/validation")
    names = sorted(path.stem for path in images.glob("*.jpg") if not path.name.startswith("."))
    require_files((labels / f"{name}.png" for name in names), "label")
    require_files(
        (
            images / f"{path.stem}.jpg"
            for path in labels.glob("*.png")
            if not path.name.startswith(".")
        ),
        "image",
    )
    made = Plan(images=len(names))
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
    needed=("*/images/validation/*.jpg", "*/annotations/validation/*.png"),
    obtain="ADEChallengeData2016.zip of MIT's scene parsing challenge, or its folder; --download fetches it",
    archives=(ADE20K,),
)
