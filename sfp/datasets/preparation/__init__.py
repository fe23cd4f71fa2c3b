"""From what the datasets' owners ship to the layout that mmsegmentation reads, one file for each owner's format."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sfp.datasets.layouts import Layout, find_layout, unfinished_marker
from sfp.datasets.preparation import (
    ade20k,
    ade_full,
    cityscapes,
    coco,
    context,
    context459,
    voc2012,
)
from sfp.datasets.preparation.download import fetch
from sfp.datasets.preparation.recipe import Recipe
from sfp.datasets.preparation.sources import Sources
from sfp.datasets.preparation.steps import carry_out
from sfp.errors import SFPError
from sfp.files import only_one, whole_file

RECIPES: dict[str, Recipe] = {
    "voc20": voc2012.RECIPE,
    "voc21": voc2012.RECIPE,
    "context59": context.RECIPE,
    "context60": context.RECIPE,
    "context459": context459.RECIPE,
    "coco_stuff164k": coco.STUFF_RECIPE,
    "coco_object": coco.OBJECT_RECIPE,
    "ade20k": ade20k.RECIPE,
    "ade847": ade_full.RECIPE,
    "city_scapes": cityscapes.RECIPE,
}


def prepare(
    name: str,
    source: Sequence[Path],
    out: Path,
    workers: int = 1,
    download: bool = False,
    mirror: str | None = None,
) -> tuple[Path, int]:
    """Prepare a dataset under the data root ``out``. The sources are only read; files that were finished before are kept.

    Args:
        source: folders, files and archives of the owners.
        download: fetch the owners' archives into ``out/downloads`` first, from ``mirror`` if that is given.

    Returns:
        The dataset's folder and how many validation images it has.

    Raises:
        SFPError: an unknown name, a fault in the source, a failed download, or an ``out`` that can't be written.
    """
    layout = find_layout(name)
    recipe = RECIPES[name]
    if download and not recipe.archives:
        raise SFPError(
            f"{name} can't be downloaded by a program; it needs {recipe.obtain}: give them with --source."
        )
    if not source and not download:
        raise SFPError(f"There is no source: {name} needs {recipe.obtain}.")
    with only_one(out, "--out", f".{layout.root.replace('/', '_')}.lock"):
        return _prepare(layout, recipe, source, out, workers, download, mirror)


def _prepare(
    layout: Layout,
    recipe: Recipe,
    source: Sequence[Path],
    out: Path,
    workers: int,
    download: bool,
    mirror: str | None,
) -> tuple[Path, int]:
    name, root, unpacked = layout.name, out / layout.root, out / f".unpacked_{layout.name}"
    try:
        archives = (
            [fetch(archive, out / "downloads", mirror) for archive in recipe.archives]
            if download
            else []
        )
        plan = recipe.plan(Sources([*source, *archives], unpacked, recipe.needed), root, layout)
        root.mkdir(parents=True, exist_ok=True)
        marker = unfinished_marker(layout, root)
        with whole_file(marker) as partial:
            partial.write_text(
                f"Preparing {name} has begun and not ended; run tools/prepare_dataset.py again.\n"
            )
        carry_out(plan, workers, f"preparing {name}")
        marker.unlink()
        if unpacked.is_dir():
            shutil.rmtree(unpacked)  # what is used as it is lives on by its hard link
    except OSError as error:
        raise SFPError(
            f"Preparing {name} under {out} failed ({error}); mend that, or choose another folder with --out."
        ) from error
    return root, plan.images
